package session

import (
	"bytes"
	"slices"
	"strings"
)

// Effect is what a statement may leave behind in its session when its transaction is over.
type Effect uint16

const (
	// SetsParameters: those in Effects.Parameters.
	SetsParameters Effect = 1 << iota
	// SetsUnknown: a parameter whose name cannot be told.
	SetsUnknown
	// ResetsAll: RESET ALL or DISCARD ALL.
	ResetsAll
	// Frees: objects may be gone.
	Frees
	// Opaque: the text does not tell (functions that are not known to be harmless).
	Opaque
	// Body: it carries commands of its own (DO, CALL, EXECUTE).
	Body
	// Foreign: a statement that was prepared by SQL may have been used. What it does was in the text that prepared it.
	Foreign
	// The rest are objects that only the session has.
	TempTable
	SessionLock
	HeldCursor
	SQLPrepared
	Library
	Listening
	Authorization
	Function // one that the operator has named

	// Objects are those that keep a client at its server connection.
	Objects = TempTable | SessionLock | HeldCursor | SQLPrepared | Library | Listening | Authorization | Function
	// Unclear are those after which the server is asked what is there.
	Unclear = SetsParameters | SetsUnknown | ResetsAll | Opaque | Body | Foreign | Objects
)

// PinReasons are the reasons for which a client is kept at its server connection, by name.
var PinReasons = [...]struct {
	Effect
	Name string
}{
	{SetsUnknown, "parameter"}, {TempTable, "temporary_table"}, {SessionLock, "advisory_lock"}, {HeldCursor, "held_cursor"},
	{SQLPrepared, "prepared"}, {Library, "library"}, {Listening, "listen"}, {Authorization, "authorization"}, {Function, "function"},
}

// Reasons lists the names of what keeps a client at its server connection.
func (e Effect) Reasons() []string {
	var list []string
	for _, n := range PinReasons {
		if e&n.Effect != 0 {
			list = append(list, n.Name)
		}
	}
	return list
}

// Parameter is one that a text sets or resets.
type Parameter struct {
	Name  string // in lower case
	Local bool   // until the end of the transaction only
	Reset bool   // to its default
}

// ValidParameter tells whether a session may begin with a parameter of this name, set as by SET: PostgreSQL may still not
// know it.
func ValidParameter(name string) bool {
	s := scan{sql: []byte(name), budget: maxSkipped}
	ident, quoted, end := s.identifier(0)
	return len(name) <= maxParameterName && ident == folded([]byte(name)) && !quoted && end == len(name) && ident != "" &&
		ident != "session_authorization" && !unfollowed(ident)
}

// Custom tells whether a parameter of this name comes to exist by being set. Resetting does not take it away again: it
// is empty then, where a session that never set it has none.
func Custom(name string) bool { return strings.Contains(name, ".") }

// Effects are what a text does to its session, as far as its words tell.
type Effects struct {
	Effect
	Parameters []Parameter
}

// Add adds what another text does.
func (e *Effects) Add(o Effects) {
	e.Effect |= o.Effect
	if len(e.Parameters) == 0 {
		e.Parameters = slices.Clip(o.Parameters) // shared, and copied when more come
		return
	}
	for _, p := range o.Parameters {
		switch {
		case slices.Contains(e.Parameters, p):
		case len(e.Parameters) >= maxParameters:
			e.Effect |= SetsUnknown
			return
		default:
			e.Parameters = append(e.Parameters, p)
		}
	}
}

// maxShape is the longest shape, in bytes.
const maxShape = 200

// Shape is the beginning of a text without its literals, for people: what stands between single quotes, and numbers, may
// be secrets.
func Shape(sql []byte) string {
	var b strings.Builder
	for i := 0; i < len(sql) && sql[i] != 0 && b.Len() < maxShape; {
		switch c := sql[i]; {
		case c == '\\', c == '"', (c|0x20 == 'e' || c == '&') && i+1 < len(sql) && sql[i+1] == '\'':
			return b.String() + "?"
		case c == '\'':
			end := bytes.IndexByte(sql[i+1:], '\'')
			if end < 0 {
				return b.String() + "?"
			}
			b.WriteByte('?')
			i += end + 2
		case c == '$' && i+1 < len(sql) && (sql[i+1] < '0' || sql[i+1] > '9'):
			return b.String() + "?" // a dollar quote
		case byteKinds[c] == inWord:
			b.WriteByte('?')
			for i < len(sql) && (byteKinds[sql[i]]&inWord != 0 || sql[i] == '.') {
				i++
			}
		case byteKinds[c]&beginsWord != 0:
			for i < len(sql) && byteKinds[sql[i]]&inWord != 0 {
				b.WriteByte(sql[i])
				i++
			}
		case byteKinds[c]&isSpace != 0:
			b.WriteByte(' ')
			for i < len(sql) && byteKinds[sql[i]]&isSpace != 0 {
				i++
			}
		default:
			b.WriteByte(c)
			i++
		}
	}
	return strings.ToValidUTF8(b.String(), "?")
}

// Bare is a text without its literals, comments and quoted bodies, as PostgreSQL reads it with its default settings.
func Bare(sql []byte) []byte {
	out := make([]byte, 0, len(sql))
	for i := 0; i < len(sql) && sql[i] != 0; {
		rest := sql[i:]
		n := 0
		switch {
		case rest[0] == '\'':
			escapes := i > 0 && sql[i-1]|0x20 == 'e' && (i < 2 || byteKinds[sql[i-2]]&inWord == 0)
			for n = 1; n < len(rest) && rest[n] != '\''; n++ {
				if escapes && rest[n] == '\\' {
					n++
				}
			}
			n++
		case bytes.HasPrefix(rest, []byte("--")):
			if n = bytes.IndexAny(rest, "\r\n"); n < 0 {
				n = len(rest)
			}
		case bytes.HasPrefix(rest, []byte("/*")):
			for depth, at := 1, 2; ; at++ {
				if at >= len(rest) {
					n = len(rest)
					break
				}
				if bytes.HasPrefix(rest[at:], []byte("*/")) {
					if depth--; depth == 0 {
						n = at + 2
						break
					}
					at++
				} else if bytes.HasPrefix(rest[at:], []byte("/*")) {
					depth++
					at++
				}
			}
		case rest[0] == '$' && (i == 0 || byteKinds[sql[i-1]]&inWord == 0):
			tag := 1
			for tag < len(rest) && byteKinds[rest[tag]]&inWord != 0 {
				tag++
			}
			if tag < len(rest) && rest[tag] == '$' && (tag == 1 || byteKinds[rest[1]]&beginsWord != 0) {
				if end := bytes.Index(rest[tag+1:], rest[:tag+1]); end >= 0 {
					n = tag + 1 + end + tag + 1
				} else {
					n = len(rest)
				}
			}
		}
		if n == 0 {
			out = append(out, rest[0])
			i++
			continue
		}
		out = append(out, ' ')
		i += min(n, len(rest))
	}
	return out
}
