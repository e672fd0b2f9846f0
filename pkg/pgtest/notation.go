package pgtest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The notation of conversation files for messages, the same for what is sent and for what was received:
//
//	Parse "select $1" name=s1 types=[int4]
//
// A message's name, then values and fields. A value is a word, a Go string, null, hex:00ff, repeat("x" 1000), several of
// these joined by +, or a list [a b c] of values.

// value is one value; a list has items and nothing else.
type value struct {
	bytes []byte // nil for null
	list  bool
	items []value
}

func (v value) text() string { return string(v.bytes) }

// note is a parsed message.
type note struct {
	name   string
	values []value          // those without a name, in order
	fields map[string]value // those with one
}

// texts are the fields as startup parameters.
func (n note) texts() map[string]string {
	params := map[string]string{}
	for name, v := range n.fields {
		params[name] = v.text()
	}
	return params
}

// parseNote reads one line.
func parseNote(line string) (note, error) {
	s := scanner{rest: line}
	n := note{name: s.word(), fields: map[string]value{}}
	if n.name == "" {
		return n, fmt.Errorf("a message's name expected, found %q", line)
	}
	for s.space(); s.rest != ""; s.space() {
		start := s.rest
		if field := s.word(); field != "" && strings.HasPrefix(s.rest, "=") {
			if _, twice := n.fields[field]; twice {
				return n, fmt.Errorf("field %s is given twice", field)
			}
			s.rest = s.rest[1:]
			v, err := s.value()
			if err != nil {
				return n, fmt.Errorf("field %s: %w", field, err)
			}
			n.fields[field] = v
			continue
		}
		s.rest = start
		v, err := s.value()
		if err != nil {
			return n, err
		}
		n.values = append(n.values, v)
	}
	return n, nil
}

// scanner eats a line from the left.
type scanner struct{ rest string }

func (s *scanner) space() { s.rest = strings.TrimLeft(s.rest, " ") }

// word eats letters, digits and a few signs that need no quotes; it may be empty.
func (s *scanner) word() string {
	n := strings.IndexFunc(s.rest, func(r rune) bool { return !isWordRune(r) })
	if n < 0 {
		n = len(s.rest)
	}
	w := s.rest[:n]
	s.rest = s.rest[n:]
	return w
}

func isWordRune(r rune) bool {
	return r == '_' || r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// value eats a value and the ones joined to it.
func (s *scanner) value() (value, error) {
	if strings.HasPrefix(s.rest, "[") {
		return s.listValue()
	}
	v, err := s.single()
	for err == nil && strings.HasPrefix(s.rest, " + ") {
		s.rest = s.rest[len(" + "):]
		var more value
		if more, err = s.single(); err == nil {
			v.bytes = append(v.bytes, more.bytes...)
		}
	}
	return v, err
}

func (s *scanner) listValue() (value, error) {
	v := value{list: true}
	s.rest = s.rest[1:]
	for s.space(); !strings.HasPrefix(s.rest, "]"); s.space() {
		if s.rest == "" {
			return v, fmt.Errorf("a list does not end with ]")
		}
		item, err := s.value()
		if err != nil {
			return v, err
		}
		v.items = append(v.items, item)
	}
	s.rest = s.rest[1:]
	return v, nil
}

func (s *scanner) single() (value, error) {
	switch {
	case strings.HasPrefix(s.rest, `"`):
		quoted, err := strconv.QuotedPrefix(s.rest)
		if err != nil {
			return value{}, fmt.Errorf("string expected, found %s", s.rest)
		}
		s.rest = s.rest[len(quoted):]
		text, err := strconv.Unquote(quoted)
		return value{bytes: []byte(text)}, err
	case strings.HasPrefix(s.rest, "hex:"):
		s.rest = s.rest[len("hex:"):]
		b, err := hex.DecodeString(s.word())
		if b == nil {
			b = []byte{}
		}
		return value{bytes: b}, err
	case strings.HasPrefix(s.rest, "repeat("):
		s.rest = s.rest[len("repeat("):]
		what, err := s.single()
		if err != nil {
			return value{}, err
		}
		s.space()
		n, err := strconv.Atoi(s.word())
		if err != nil || n < 0 || n > 1<<24 || !strings.HasPrefix(s.rest, ")") {
			return value{}, fmt.Errorf("repeat needs a string and a count, as in repeat(\"x\" 1000)")
		}
		s.rest = s.rest[1:]
		return value{bytes: slices.Repeat(what.bytes, n)}, nil
	}
	switch w := s.word(); w {
	case "":
		return value{}, fmt.Errorf("value expected, found %q", s.rest)
	case "null":
		return value{}, nil
	default:
		return value{bytes: []byte(w)}, nil
	}
}

// types are names for what would be numbers; other types are shown by number, those of users as "user-defined".
var types = map[uint32]string{
	16: "bool", 17: "bytea", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid", 114: "json",
	700: "float4", 701: "float8", 705: "unknown", 1000: "bool[]", 1005: "int2[]", 1007: "int4[]", 1009: "text[]",
	1016: "int8[]", 1042: "bpchar", 1043: "varchar", 1082: "date", 1083: "time", 1114: "timestamp", 1184: "timestamptz",
	1186: "interval", 1700: "numeric", 2249: "record", 2278: "void", 2950: "uuid", 3802: "jsonb",
}

const firstUserOID = 16384

func typeName(oid uint32) string {
	if name, ok := types[oid]; ok {
		return name
	}
	if oid >= firstUserOID {
		return "user-defined"
	}
	return strconv.FormatUint(uint64(oid), 10)
}

func typeOID(name string) (uint32, error) {
	for oid, known := range types {
		if known == name {
			return oid, nil
		}
	}
	n, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a type's name known here nor its number", name)
	}
	return uint32(n), nil
}
