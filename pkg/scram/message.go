package scram

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// malformed reports a message which breaks the grammar or a bound. The format must not quote secrets.
func malformed(message, format string, args ...any) error {
	return fmt.Errorf("malformed SCRAM %s: %s", message, fmt.Sprintf(format, args...))
}

// checkMessage applies the bounds that hold for every message before anything in it is looked at.
func checkMessage(name string, msg []byte) error {
	if len(msg) > MaxMessage {
		return malformed(name, "it has %d bytes, at most %d are allowed", len(msg), MaxMessage)
	}
	for _, b := range msg {
		if b == 0 {
			return malformed(name, "it contains a NUL byte")
		}
	}
	if !utf8.Valid(msg) {
		return malformed(name, "it is not UTF-8")
	}
	return nil
}

// attributes walks "a=value,b=value" from left to right; SCRAM fixes the order, so there is no lookup.
type attributes struct {
	message string // names the message in errors
	rest    string
	open    bool // a comma promised another attribute, or nothing was read yet
}

func newAttributes(message, s string) attributes {
	return attributes{message: message, rest: s, open: true}
}

// take reads the next attribute, which must be the one named key.
func (a *attributes) take(key byte) (string, error) {
	name, value, err := a.next()
	if err != nil {
		return "", err
	}
	if name == 'm' {
		return "", malformed(a.message, "the mandatory extension m= is not supported")
	}
	if name != key {
		return "", malformed(a.message, "attribute %c= expected, %q found", key, string(name))
	}
	return value, nil
}

// next reads any attribute.
func (a *attributes) next() (name byte, value string, err error) {
	if !a.open {
		return 0, "", malformed(a.message, "it ends too early")
	}
	s, rest, more := strings.Cut(a.rest, ",")
	a.rest, a.open = rest, more
	if len(s) < 2 || s[1] != '=' || !isLetter(s[0]) {
		return 0, "", malformed(a.message, "attribute expected, a letter followed by '='")
	}
	return s[0], s[2:], nil
}

// end insists that nothing follows.
func (a *attributes) end() error {
	if a.open {
		return malformed(a.message, "nothing may follow its last attribute")
	}
	return nil
}

func isLetter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }

// checkNonce bounds one side's nonce: printable ASCII without the comma, as RFC 5802 says.
func checkNonce(message, nonce string) error {
	switch {
	case nonce == "":
		return malformed(message, "the nonce is empty")
	case len(nonce) > MaxNonce:
		return malformed(message, "the nonce has %d bytes, at most %d are allowed", len(nonce), MaxNonce)
	}
	for i := range len(nonce) {
		if c := nonce[i]; c < '!' || c > '~' || c == ',' {
			return malformed(message, "the nonce may only hold printable ASCII characters without the comma")
		}
	}
	return nil
}

// parseIterations accepts 1 to MaxIterations in plain digits, without a sign or leading zeros.
func parseIterations(s string) (int, bool) {
	if s == "" || s[0] == '0' || len(s) > 7 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= MaxIterations
}

// decode64 is strict base64. Go's decoder skips line breaks, which SCRAM does not allow.
func decode64(s string) ([]byte, bool) {
	if s == "" || strings.ContainsAny(s, "\r\n") {
		return nil, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	return b, err == nil
}

// decodeKey decodes base64 of exactly 32 bytes.
func decodeKey(s string) (key [32]byte, ok bool) {
	if len(s) != base64.StdEncoding.EncodedLen(len(key)) {
		return key, false
	}
	b, ok := decode64(s)
	if !ok || len(b) != len(key) {
		return key, false
	}
	return [32]byte(b), true
}

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
