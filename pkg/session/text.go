package session

import (
	"bytes"
	"slices"
	"strings"
)

// Reader tells what statements do to their session by scanning their words once. It does not parse SQL: what stands in
// literals and comments counts too, so it may see too much, never too little of what the text says. What functions and
// triggers do inside is not in the text.
type Reader struct {
	functions map[string]Effect // 0 for the harmless ones
}

// NewReader makes a Reader for which further functions are harmless, and further ones keep their caller at its server
// connection. Names are in lower case, with a schema if they are called by one.
func NewReader(harmless, pinning []string) *Reader {
	r := &Reader{functions: map[string]Effect{"set_config": SetsParameters}}
	for _, list := range [][]string{strings.Fields(harmlessFunctions), strings.Fields(notFunctions), harmless} {
		for _, name := range list {
			r.functions[strings.ToLower(name)] = 0
		}
	}
	for _, name := range pinning {
		r.functions[strings.ToLower(name)] = Function
	}
	for _, name := range strings.Fields("pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared") {
		r.functions[name] = SessionLock
	}
	return r
}

// kinds of bytes.
const (
	isSpace = 1 << iota
	beginsWord
	inWord
)

var byteKinds = func() (t [256]uint8) {
	for i := range t {
		b := byte(i)
		switch {
		case b == ' ' || '\t' <= b && b <= '\r':
			t[i] = isSpace
		case 'a' <= b|0x20 && b|0x20 <= 'z' || b == '_' || b >= 0x80:
			t[i] = beginsWord | inWord
		case '0' <= b && b <= '9':
			t[i] = inWord
		}
	}
	return t
}()

// scan is one pass over a text.
type scan struct {
	r   *Reader
	sql []byte
	out Effects

	verb              bool // the next word may begin a statement
	later             bool // the text began in a piece before
	inBody            bool // what follows may be a procedure's body
	comment           bool // "--" was seen in this line
	settings, updates bool // pg_settings and UPDATE were seen: together they are a SET
	budget            int  // how much may be skipped between the words of SETs

	// opened are the states in which comments began: a comment is space, but what looks like one may stand in a literal,
	// so its words count.
	opened       []place
	line         place // in which the comment of this line began
	minus, slash place // before the latest of these bytes
	at           place
}

// place is what stands before the next word.
type place struct {
	name      span // the latest word
	before    span // the word before it, with nothing but space between; empty if there is something else
	first     byte // else what stands directly before it
	schema    span // its qualifier
	joined    byte // what has come since the latest word: 0 nothing but space and quotes, '.' one dot, else the latest byte
	quoted    bool // the latest word was in quotes
	lastQuote bool // a quote has come since
}

// maxComments bounds how many comments, or what looks like them, are open at once.
const maxComments = 64

type span struct{ from, to int }

func (s *scan) text(w span) []byte { return s.sql[w.from:w.to] }

// Read tells what a text does to its session.
func (r *Reader) Read(sql []byte) Effects {
	s := scan{r: r, sql: sql}
	s.read()
	return s.out
}

// ReadOn reads a further piece of a text that has shown these effects so far. It begins with the end of the piece before.
func (r *Reader) ReadOn(so Effect, sql []byte) Effects {
	s := scan{r: r, sql: sql, inBody: so&Body != 0, later: true}
	s.read()
	return s.out
}

func (s *scan) read() {
	sql := s.sql
	s.verb, s.budget, s.at.joined = true, maxSkipped, 1
	for i := 0; i < len(sql); {
		b := sql[i]
		k := byteKinds[b]
		switch {
		case k&beginsWord != 0:
			j := i + 1
			for j < len(sql) && byteKinds[sql[j]]&inWord != 0 {
				j++
			}
			s.word(span{i, j})
			i = j
			continue
		case k&isSpace != 0:
			if s.comment && (b == '\n' || b == '\r') {
				s.comment, s.verb = false, true
				s.at = s.line
			}
		default:
			s.mark(b, i)
		}
		i++
	}
	if s.settings && s.updates {
		s.out.Effect |= Body
	}
}

// mark handles a byte that is neither of a word nor space.
func (s *scan) mark(b byte, i int) {
	before := byte(0)
	if i > 0 {
		before = s.sql[i-1]
	}
	switch b {
	case '"':
		s.at.lastQuote = true
		if before == '&' {
			s.out.Effect |= Opaque | SetsUnknown // a name spelled in numbers
		}
		return
	case '.':
		if s.at.joined == 0 {
			s.at.joined = '.'
			s.at.lastQuote = false
			return
		}
	case ';':
		s.verb = true
	case '(':
		switch {
		case s.at.joined == 0:
			s.call(i)
		case s.at.lastQuote, '0' <= s.at.joined && s.at.joined <= '9':
			s.out.Effect |= Opaque // a name that is more than a word
		}
	case '-':
		if before == '-' && !s.comment {
			s.comment, s.line = true, s.minus
		}
		s.minus = s.at
	case '*':
		if before == '/' {
			if len(s.opened) == maxComments {
				s.out.Effect |= Opaque | Body | SetsUnknown
			} else {
				s.opened = append(s.opened, s.slash)
			}
		}
	case '/':
		if before == '*' {
			s.verb = true
			if n := len(s.opened); n > 0 {
				s.at, s.opened = s.opened[n-1], s.opened[:n-1]
				return
			}
			if s.later { // it began in a piece before
				s.out.Effect |= Opaque | Body | SetsUnknown
			}
		}
		s.slash = s.at
	}
	s.at.joined, s.at.lastQuote = b, false
}

// word handles a word.
func (s *scan) word(w span) {
	p := &s.at
	switch p.joined {
	case '.':
		p.schema = p.name
	case 0:
		p.before, p.first, p.schema = p.name, 0, span{}
	default:
		p.before, p.first, p.schema = span{}, p.joined, span{}
		if p.joined == ':' && !bytes.HasSuffix(bytes.TrimRight(s.sql[:w.from], " \t\r\n\f\v\""), []byte("::")) {
			p.first = '['
		}
	}
	p.name, p.joined = w, 0
	p.quoted, p.lastQuote = p.lastQuote, false
	t := s.text(w)
	if s.verb || s.inBody {
		s.verb = false
		s.statement(t, w.to)
	}
	switch t[0] | 0x20 {
	case 'e':
		if is(t, "execute") {
			s.out.Effect |= Body | Opaque
		}
	case 'h':
		if is(t, "hold") && is(s.text(p.before), "with") {
			s.out.Effect |= HeldCursor
		}
	case 'o':
		if is(t, "operator") {
			s.out.Effect |= Opaque
		}
	case 'p':
		switch {
		case is(t, "pg_temp"):
			s.out.Effect |= TempTable
		case is(t, "pg_settings"):
			s.settings = true
		}
	case 't':
		if is(t, "temp", "temporary") && is(s.text(p.before), "create", "replace", "local", "global", "into") {
			s.out.Effect |= TempTable
		}
	case 'u':
		if is(t, "update") {
			s.updates = true
		}
	}
}

// call: a parenthesis follows the latest word.
func (s *scan) call(i int) {
	p := &s.at
	if p.first == ':' || is(s.text(p.before), "into", "table", "as", "with", "recursive", "exists", "references", "copy") {
		return
	}
	var buf [64]byte
	name := s.text(p.name)
	whole := !p.lastQuote || p.name.from > 0 && s.sql[p.name.from-1] == '"' && s.sql[p.name.to] == '"'
	if len(name) > len(buf) || p.first == '$' || !whole { // a name that is more than the word
		s.out.Effect |= Opaque
		return
	}
	lower := buf[:len(name)]
	for i, b := range name {
		if 'A' <= b && b <= 'Z' {
			b |= 0x20
		}
		lower[i] = b
	}
	if p.schema != (span{}) && !is(s.text(p.schema), "pg_catalog") {
		effect, known := s.r.functions[folded(s.text(p.schema))+"."+string(lower)]
		if !known {
			effect = Opaque
		}
		s.out.Effect |= effect
		return
	}
	effect, known := s.r.functions[string(lower)]
	switch {
	case !known, p.quoted && effect == 0 && strings.Contains(notFunctions, string(lower)):
		s.out.Effect |= Opaque
	case effect == SetsParameters:
		s.setConfig(i + 1)
	default:
		s.out.Effect |= effect
	}
}

// setConfig reads the arguments of set_config: the first one if it is a literal, and the last one if it is true.
func (s *scan) setConfig(i int) {
	rest := s.sql[i:min(len(s.sql), i+maxArguments)]
	name, local := "", false
	rest = bytes.TrimLeft(rest, " \t\r\n\f\v")
	if len(rest) > 0 && rest[0] == '\'' {
		if end := bytes.IndexByte(rest[1:], '\''); end > 0 {
			after := bytes.TrimLeft(rest[2+end:], " \t\r\n\f\v")
			if len(after) > 0 && after[0] == ',' && !bytes.Contains(rest[:1+end], []byte(`\`)) {
				name, rest = folded(rest[1:1+end]), after
			}
		}
	}
	// Nothing but names, numbers and literals without parentheses, so that this one ends the call.
	if end := bytes.IndexByte(rest, ')'); end > 0 && !bytes.ContainsAny(rest[:end], "(\\") && bytes.Count(rest[:end], []byte("'"))%2 == 0 {
		args := bytes.Split(rest[:end], []byte(","))
		local = len(args) > 1 && is(bytes.TrimSpace(args[len(args)-1]), "true")
	}
	switch {
	case name != "":
		s.sets(Parameter{Name: name, Local: local})
	case local:
		s.out.Effect |= Opaque // over with the transaction, whatever it is
	default:
		s.out.Effect |= SetsUnknown
	}
}

// maxArguments is how much of the arguments of set_config is looked at, in bytes.
const maxArguments = 1024

// maxParameters is how many parameters of a text, or of a transaction, are followed by name.
const maxParameters = 64

func (s *scan) sets(p Parameter) {
	switch {
	case p.Name == "" || len(p.Name) > maxParameterName || len(s.out.Parameters) >= maxParameters:
		s.out.Effect |= SetsUnknown
		return
	case p.Local && !Custom(p.Name), unfollowed(p.Name):
		return
	}
	s.out.Effect |= SetsParameters
	if !slices.Contains(s.out.Parameters, p) {
		s.out.Parameters = append(s.out.Parameters, p)
	}
}

// unfollowed parameters are the transaction's, or cannot be set to what they say they are.
func unfollowed(name string) bool {
	return name == "seed" || name == "transaction_isolation" || name == "transaction_read_only" || name == "transaction_deferrable"
}

// maxParameterName is the longest name of a parameter that is followed, in bytes.
const maxParameterName = 256

// maxSkipped is how much space and comment may stand between the words of the SETs of a text, in bytes.
const maxSkipped = 8192

// statement handles the word that may begin a statement.
func (s *scan) statement(verb []byte, end int) {
	switch verb[0] | 0x20 {
	case 'c':
		switch {
		case is(verb, "call"):
			s.out.Effect |= Body | Opaque
		case is(verb, "close"):
			s.out.Effect |= Frees
		}
	case 'd':
		switch {
		case is(verb, "do"):
			s.out.Effect |= Body | Opaque
			s.inBody = true
		case is(verb, "drop"), is(verb, "deallocate"):
			s.out.Effect |= Frees
		case is(verb, "discard"):
			s.out.Effect |= Frees
			if what, _, _ := s.identifier(end); what == "all" {
				s.out.Effect |= ResetsAll
			}
		}
	case 'l':
		switch {
		case is(verb, "listen"):
			s.out.Effect |= Listening
		case is(verb, "load"):
			s.out.Effect |= Library
		}
	case 'p':
		if is(verb, "prepare") {
			what, quoted, next := s.identifier(end)
			if rest := bytes.TrimLeft(s.sql[next:], " \t\r\n\f\v"); what != "transaction" || quoted || len(rest) == 0 || rest[0] != '\'' {
				s.out.Effect |= SQLPrepared
			}
		}
	case 'r':
		if is(verb, "reset") {
			s.reset(end)
		}
	case 's':
		if is(verb, "set") {
			s.set(end)
		}
	case 'u':
		if is(verb, "unlisten") {
			s.out.Effect |= Frees
		}
	}
}

// set reads what follows SET.
func (s *scan) set(at int) {
	name, quoted, end := s.identifier(at)
	local := false
	if !quoted && (name == "local" || name == "session") {
		// SESSION is also the first word of two forms of its own.
		next, q, e := s.identifier(end)
		switch {
		case name == "session" && !q && next == "authorization":
			s.out.Effect |= Authorization
			return
		case name == "session" && !q && next == "characteristics":
			for _, n := range []string{"default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"} {
				s.sets(Parameter{Name: n})
			}
			return
		}
		local = name == "local"
		name, quoted, end = next, q, e
	}
	p := Parameter{Name: name, Local: local}
	if !quoted {
		switch name {
		case "transaction", "constraints":
			return
		case "session":
			if next, _, _ := s.identifier(end); next == "authorization" {
				if !local {
					s.out.Effect |= Authorization
				}
				return
			}
		case "time":
			p.Name = "timezone"
		case "names":
			p.Name = "client_encoding"
		case "schema":
			p.Name = "search_path"
		case "xml":
			p.Name = "xmloption"
		}
	}
	if p.Name == "session_authorization" {
		s.out.Effect |= Authorization
		return
	}
	s.sets(p)
}

// reset reads what follows RESET.
func (s *scan) reset(at int) {
	name, quoted, end := s.identifier(at)
	if !quoted {
		switch name {
		case "all":
			s.out.Effect |= ResetsAll
			return
		case "time":
			name = "timezone"
		case "session":
			if next, _, _ := s.identifier(end); next == "authorization" {
				s.out.Effect |= Authorization
				return
			}
		}
	}
	if name == "session_authorization" {
		s.out.Effect |= Authorization
		return
	}
	s.sets(Parameter{Name: name, Reset: true})
}

// folded is a name in lower case, as PostgreSQL folds it where it compares names of parameters: ASCII alone.
func folded(name []byte) string {
	b := bytes.Clone(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// identifier reads a name with its dots at i, folded. Comments may stand before it. It is empty if there is none, or if it
// is too far away.
func (s *scan) identifier(i int) (name string, quoted bool, end int) {
	var b strings.Builder
	for i = s.skip(i); ; {
		switch {
		case i < len(s.sql) && s.sql[i] == '"':
			quoted = true
			j := bytes.IndexByte(s.sql[i+1:min(len(s.sql), i+maxParameterName)], '"')
			if j < 0 {
				return "", true, len(s.sql)
			}
			b.WriteString(folded(s.sql[i+1 : i+1+j]))
			i += j + 2
		case i < len(s.sql) && byteKinds[s.sql[i]]&beginsWord != 0:
			j := i
			for j < len(s.sql) && (byteKinds[s.sql[j]]&inWord != 0 || s.sql[j] == '$') && j-i <= maxParameterName {
				j++
			}
			b.WriteString(folded(s.sql[i:j]))
			i = j
		default:
			return "", quoted, i
		}
		if next := s.skip(i); next < len(s.sql) && s.sql[next] == '.' {
			b.WriteByte('.')
			i = s.skip(next + 1)
			continue
		}
		return b.String(), quoted, i
	}
}

// skip skips space and comments. When it has skipped too much it ends at the end of the text, where no name is.
func (s *scan) skip(i int) int {
	from := i
	for i < len(s.sql) {
		if s.budget < 0 {
			s.out.Effect |= SetsUnknown
			return len(s.sql)
		}
		switch rest := s.sql[i:]; {
		case byteKinds[s.sql[i]]&isSpace != 0:
			i++
		case bytes.HasPrefix(rest, []byte("--")):
			for i < len(s.sql) && s.sql[i] != '\n' && s.sql[i] != '\r' && i-from <= maxSkipped {
				i++
			}
		case bytes.HasPrefix(rest, []byte("/*")):
			depth := 1
			for i += 2; i < len(s.sql) && depth > 0 && i-from <= maxSkipped; {
				switch rest := s.sql[i:]; {
				case bytes.HasPrefix(rest, []byte("*/")):
					depth--
					i += 2
				case bytes.HasPrefix(rest, []byte("/*")):
					depth++
					i += 2
				default:
					i++
				}
			}
		default:
			s.budget -= i - from
			return i
		}
		if i-from > maxSkipped {
			s.budget = -1
		}
	}
	s.budget -= i - from
	return i
}

// is compares a word without case.
func is(word []byte, one ...string) bool {
	for _, w := range one {
		if len(word) != len(w) {
			continue
		}
		same := true
		for i := 0; i < len(w) && same; i++ {
			same = word[i]|0x20 == w[i]|0x20
		}
		if same {
			return true
		}
	}
	return false
}
