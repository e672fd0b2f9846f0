package pgwire

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestExtendedMessagesAreThoseOfTheProtocol(t *testing.T) {
	encoded := func(m pgproto3.FrontendMessage) []byte {
		b, err := m.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct{ got, want []byte }{
		"Bind":       {AppendBind(nil, "it's"), encoded(&pgproto3.Bind{Parameters: [][]byte{[]byte("it's")}})},
		"empty Bind": {AppendBind(nil, ""), encoded(&pgproto3.Bind{Parameters: [][]byte{{}}})},
		"Describe":   {AppendDescribePortal(nil), encoded(&pgproto3.Describe{ObjectType: 'P'})},
		"Execute":    {AppendExecute(nil, 2), encoded(&pgproto3.Execute{MaxRows: 2})},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s is %q, want %q", name, c.got, c.want)
		}
	}
}

func TestValuesOfARow(t *testing.T) {
	for in, want := range map[string]struct {
		value []byte
		rest  string
		ok    bool
	}{
		"\x00\x00\x00\x02abc": {[]byte("ab"), "c", true},
		"\x00\x00\x00\x00":    {[]byte{}, "", true},
		"\xff\xff\xff\xffx":   {nil, "x", true},
		"\xff\xff\xff\xfex":   {nil, "\xff\xff\xff\xfex", false},
		"\x7f\xff\xff\xffx":   {nil, "\x7f\xff\xff\xffx", false},
		"\x00\x00\x00\x02a":   {nil, "\x00\x00\x00\x02a", false},
		"\x00\x00":            {nil, "\x00\x00", false},
		"":                    {nil, "", false},
	} {
		value, rest, ok := NextValue([]byte(in))
		if (value == nil) != (want.value == nil) || !bytes.Equal(value, want.value) || string(rest) != want.rest || ok != want.ok {
			t.Errorf("%q: got %q, %q, %v", in, value, rest, ok)
		}
	}
}
