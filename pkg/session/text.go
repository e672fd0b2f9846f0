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

	verb    bool // the next word may begin a statement
	inBody  bool // what follows may be a procedure's body
	comment bool // "--" was seen in this line
	hidden  bool // it has been looked whether a comment hides set_config

	name      span // the latest word
	before    span // the word before it, with nothing but space between; empty if there is something else
	first     byte // else what stands directly before it
	schema    span // its qualifier
	joined    byte // what has come since the latest word: 0 nothing but space and quotes, '.' one dot, else the latest byte
	quoted    bool // the latest word was in quotes
	lastQuote bool // the latest byte was a quote
}

// endOfComment is no byte of a text that matters.
const endOfComment = 2

type span struct{ from, to int }

func (s *scan) text(w span) []byte { return s.sql[w.from:w.to] }

// Read tells what a text does to its session. The start of a text must be one of its statements; pieces of a long one may
// be read one by one if each begins with the end of the one before.
func (r *Reader) Read(sql []byte) Effects {
	s := scan{r: r, sql: sql, verb: true, joined: 1}
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
			if b == '\n' || b == '\r' {
				s.newline()
			}
		default:
			s.mark(b, i)
		}
		i++
	}
	return s.out
}

func (s *scan) newline() {
	if s.comment {
		s.comment = false
		s.verb = true
		s.joined = endOfComment
	}
}

// mark handles a byte that is neither of a word nor space.
func (s *scan) mark(b byte, at int) {
	switch b {
	case '"':
		s.lastQuote = true
		return
	case '.':
		if s.joined == 0 {
			s.joined = '.'
			s.lastQuote = false
			return
		}
	case ';':
		s.verb = true
	case '(':
		switch s.joined {
		case 0:
			s.call(at)
		case endOfComment:
			s.hiddenCall()
		}
	case '-':
		s.comment = s.comment || at > 0 && s.sql[at-1] == '-'
	case '/':
		if at > 0 && s.sql[at-1] == '*' {
			s.verb = true
			b = endOfComment
		}
	}
	s.joined, s.lastQuote = b, false
}

// word handles a word.
func (s *scan) word(w span) {
	switch s.joined {
	case '.':
		s.schema = s.name
	case 0:
		s.before, s.first, s.schema = s.name, 0, span{}
	default:
		s.before, s.first, s.schema = span{}, s.joined, span{}
		if s.joined == ':' && !bytes.HasSuffix(bytes.TrimRight(s.sql[:w.from], " \t\r\n\f\v\""), []byte("::")) {
			s.first = '['
		}
	}
	s.name, s.joined = w, 0
	s.quoted, s.lastQuote = s.lastQuote, false
	t := s.text(w)
	if s.verb {
		s.verb = false
		s.statement(t, w.to)
	} else if s.inBody && is(t, "begin", "then", "else", "loop", "declare") {
		s.verb = true
	}
	switch t[0] | 0x20 {
	case 'e':
		if is(t, "execute") {
			s.out.Effect |= Body | Opaque
		}
	case 'h':
		if is(t, "hold") && is(s.text(s.before), "with") {
			s.out.Effect |= HeldCursor
		}
	case 'o':
		if is(t, "operator") {
			s.out.Effect |= Opaque
		}
	case 'p':
		if is(t, "pg_temp") {
			s.out.Effect |= TempTable
		}
	case 't':
		if is(t, "temp", "temporary") && is(s.text(s.before), "create", "replace", "local", "global", "into") {
			s.out.Effect |= TempTable
		}
	}
}

// call: a parenthesis follows the latest word.
func (s *scan) call(at int) {
	if s.first == ')' || s.first == ':' || is(s.text(s.before), "into", "table", "as", "with", "recursive", "exists", "references", "copy") {
		return
	}
	var buf [64]byte
	name := s.text(s.name)
	if len(name) > len(buf) || s.first == '$' { // a name with $ in it is more than the word
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
	if s.schema != (span{}) && !is(s.text(s.schema), "pg_catalog") {
		effect, known := s.r.functions[strings.ToLower(string(s.text(s.schema)))+"."+string(lower)]
		if !known {
			effect = Opaque
		}
		s.out.Effect |= effect
		return
	}
	effect, known := s.r.functions[string(lower)]
	switch {
	case !known, s.quoted && effect == 0 && strings.Contains(notFunctions, string(lower)):
		s.out.Effect |= Opaque
	case effect == SetsParameters:
		s.setConfig(at + 1)
	default:
		s.out.Effect |= effect
	}
}

// hiddenCall: a comment stands before a parenthesis, and what stands before that is not known.
func (s *scan) hiddenCall() {
	s.out.Effect |= Opaque
	if !s.hidden && bytes.Contains(bytes.ToLower(s.sql), []byte("set_config")) {
		s.out.Effect |= SetsUnknown
	}
	s.hidden = true
}

// setConfig reads the first argument of set_config.
func (s *scan) setConfig(at int) {
	rest := bytes.TrimLeft(s.sql[at:], " \t\r\n\f\v")
	if len(rest) > 0 && rest[0] == '\'' {
		if end := bytes.IndexByte(rest[1:min(len(rest), maxParameterName)], '\''); end > 0 {
			name := strings.ToLower(string(rest[1 : 1+end]))
			after := bytes.TrimLeft(rest[2+end:], " \t\r\n\f\v")
			if len(after) > 0 && after[0] == ',' && !strings.Contains(name, `\`) {
				s.sets(Parameter{Name: name})
				return
			}
		}
	}
	s.out.Effect |= SetsUnknown
}

func (s *scan) sets(p Parameter) {
	if p.Name == "" || len(p.Name) > maxParameterName {
		s.out.Effect |= SetsUnknown
		return
	}
	if p.Local && !Custom(p.Name) {
		return
	}
	s.out.Effect |= SetsParameters
	if !slices.Contains(s.out.Parameters, p) {
		s.out.Parameters = append(s.out.Parameters, p)
	}
}

// maxParameterName is the longest name of a parameter that is followed, in bytes.
const maxParameterName = 256

// maxSkipped is how much space and comment may stand between the words of a SET, in bytes.
const maxSkipped = 4096

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
		case is(verb, "declare"):
			s.verb = s.inBody
		case is(verb, "drop"), is(verb, "deallocate"):
			s.out.Effect |= Frees
		case is(verb, "discard"):
			s.out.Effect |= Frees
			if what, _, _ := identifier(s.sql, end); what == "all" {
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
			if what, _, _ := identifier(s.sql, end); what != "transaction" {
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
	case 'b', 't', 'e':
		if s.inBody && is(verb, "begin", "then", "else") {
			s.verb = true
		}
	}
}

// set reads what follows SET.
func (s *scan) set(at int) {
	name, quoted, end := identifier(s.sql, at)
	local := false
	if !quoted && (name == "local" || name == "session") {
		// SESSION is also the first word of two forms of its own.
		next, q, e := identifier(s.sql, end)
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
			if next, _, _ := identifier(s.sql, end); next == "authorization" {
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
	name, quoted, end := identifier(s.sql, at)
	if !quoted {
		switch name {
		case "all":
			s.out.Effect |= ResetsAll
			return
		case "time":
			name = "timezone"
		case "session":
			if next, _, _ := identifier(s.sql, end); next == "authorization" {
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

// identifier reads a name with its dots behind at, in lower case: a parameter's is the same in any. Comments may stand
// before it. It is empty if there is none.
func identifier(sql []byte, at int) (name string, quoted bool, end int) {
	i := skipSpace(sql, at)
	var b strings.Builder
	for {
		switch {
		case i < len(sql) && sql[i] == '"':
			quoted = true
			j := bytes.IndexByte(sql[i+1:min(len(sql), i+maxParameterName)], '"')
			if j < 0 {
				return "", true, len(sql)
			}
			b.Write(bytes.ToLower(sql[i+1 : i+1+j]))
			i += j + 2
		case i < len(sql) && byteKinds[sql[i]]&beginsWord != 0:
			j := i
			for j < len(sql) && byteKinds[sql[j]]&inWord != 0 {
				j++
			}
			b.Write(bytes.ToLower(sql[i:j]))
			i = j
		default:
			return "", quoted, i
		}
		if next := skipSpace(sql, i); next < len(sql) && sql[next] == '.' {
			b.WriteByte('.')
			i = skipSpace(sql, next+1)
			continue
		}
		return b.String(), quoted, i
	}
}

// skipSpace skips space and comments, not endlessly: many statements may have the same comment behind them.
func skipSpace(sql []byte, i int) int {
	sql = sql[:min(len(sql), i+maxSkipped)]
	for i < len(sql) {
		switch rest := sql[i:]; {
		case byteKinds[sql[i]]&isSpace != 0:
			i++
		case bytes.HasPrefix(rest, []byte("--")):
			n := bytes.IndexAny(rest, "\r\n")
			if n < 0 {
				return len(sql)
			}
			i += n
		case bytes.HasPrefix(rest, []byte("/*")):
			depth := 1
			for i += 2; i < len(sql) && depth > 0; {
				switch rest := sql[i:]; {
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
			return i
		}
	}
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
