package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestHeaderWaitsForFiveBytes(t *testing.T) {
	whole := AppendReady(nil, StatusIdle)
	for n := range HeaderSize {
		// Not even an absurd length is judged before it is there.
		for _, b := range [][]byte{whole[:n], bytes.Repeat([]byte{0xff}, n)} {
			if typ, size, ok, err := Header(b, 100); typ != 0 || size != 0 || ok || err != nil {
				t.Errorf("%d bytes: got %q, %d, %v, %v", n, typ, size, ok, err)
			}
		}
	}
	if typ, size, ok, err := Header(whole[:HeaderSize], 100); typ != ReadyForQuery || size != len(whole) || !ok || err != nil {
		t.Errorf("got %q, %d, %v, %v", typ, size, ok, err)
	}
}

// S62
func TestHeaderRefusesImpossibleLengths(t *testing.T) {
	const limit = 1000
	for name, c := range map[string]struct {
		typ    byte
		length uint32
		limit  int
		want   string // empty if it is fine
	}{
		"the shortest":               {'S', 4, limit, ""},
		"the longest":                {'d', limit, limit, ""},
		"the longest there is":       {'d', math.MaxInt32, math.MaxInt32, ""},
		"zero":                       {'Q', 0, limit, "bad packet header: message 'Q' announces length 0, allowed is 4 to 1000"},
		"three":                      {'Q', 3, limit, "bad packet header: message 'Q' announces length 3, allowed is 4 to 1000"},
		"one more than the limit":    {'D', limit + 1, limit, "bad packet header: message 'D' announces length 1001, allowed is 4 to 1000"},
		"huge":                       {'D', math.MaxInt32, limit, "bad packet header: message 'D' announces length 2147483647, allowed is 4 to 1000"},
		"minus one":                  {'d', math.MaxUint32, math.MaxInt32, "bad packet header: message 'd' announces length -1, allowed is 4 to 2147483647"},
		"the most negative":          {'d', 1 << 31, math.MaxInt32, "bad packet header: message 'd' announces length -2147483648, allowed is 4 to 2147483647"},
		"of a type that is a NUL":    {0, 2, limit, "bad packet header: message 0x00 announces length 2, allowed is 4 to 1000"},
		"of a type that is a blank":  {' ', 2, limit, "bad packet header: message 0x20 announces length 2, allowed is 4 to 1000"},
		"of a type above ASCII":      {0xe4, 2, limit, "bad packet header: message 0xe4 announces length 2, allowed is 4 to 1000"},
		"of a type that is a delete": {0x7f, 2, limit, "bad packet header: message 0x7f announces length 2, allowed is 4 to 1000"},
	} {
		b := binary.BigEndian.AppendUint32([]byte{c.typ}, c.length)
		typ, size, ok, err := Header(b, c.limit)
		if typ != c.typ {
			t.Errorf("%s: type %q", name, typ)
		}
		if c.want == "" {
			if !ok || err != nil || size != int(c.length)+1 {
				t.Errorf("%s: got %d, %v, %v", name, size, ok, err)
			}
			continue
		}
		var length *LengthError
		if ok || size != 0 || !errors.As(err, &length) || err.Error() != c.want {
			t.Errorf("%s: got %d, %v, %v", name, size, ok, err)
		}
	}
}

// A hostile name of a type must not reach a log as it is.
func TestTypeNamesArePrintable(t *testing.T) {
	for typ := range 256 {
		name := TypeName(byte(typ))
		if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Errorf("type %#x is called %q", typ, name)
		}
	}
}

func TestNextStringNeedsATerminator(t *testing.T) {
	for _, c := range []struct{ in, s, rest string }{
		{"a\x00", "a", ""}, {"\x00", "", ""}, {"\x00\x00", "", "\x00"}, {"ab\x00c", "ab", "c"},
	} {
		if s, rest, ok := NextString([]byte(c.in)); !ok || s != c.s || string(rest) != c.rest {
			t.Errorf("%q: got %q, %q, %v", c.in, s, rest, ok)
		}
	}
	for _, in := range []string{"", "a", "abc"} {
		if s, rest, ok := NextString([]byte(in)); ok || s != "" || string(rest) != in {
			t.Errorf("%q: got %q, %q, %v", in, s, rest, ok)
		}
	}
}

func TestReadParameterStatusRefusesOddLayouts(t *testing.T) {
	if name, value, ok := ReadParameterStatus([]byte("TimeZone\x00Europe/Berlin\x00")); !ok || name != "TimeZone" || value != "Europe/Berlin" {
		t.Errorf("got %q, %q, %v", name, value, ok)
	}
	if name, value, ok := ReadParameterStatus([]byte("application_name\x00\x00")); !ok || name != "application_name" || value != "" {
		t.Errorf("got %q, %q, %v", name, value, ok)
	}
	for name, body := range map[string]string{
		"nothing":                     "",
		"no terminator at all":        "TimeZone",
		"a name alone":                "TimeZone\x00",
		"a value without terminator":  "TimeZone\x00UTC",
		"no name":                     "\x00UTC\x00",
		"bytes behind the terminator": "TimeZone\x00UTC\x00x",
		"a second parameter":          "TimeZone\x00UTC\x00DateStyle\x00ISO\x00",
		"a NUL behind the terminator": "TimeZone\x00UTC\x00\x00",
	} {
		if got, value, ok := ReadParameterStatus([]byte(body)); ok {
			t.Errorf("%s: got %q = %q", name, got, value)
		}
	}
}

// walk cuts b into frames as a relay does that has all of it.
func walk(b []byte, limit int) (frames [][]byte, rest []byte, err error) {
	for {
		_, size, ok, err := Header(b, limit)
		if err != nil {
			return frames, nil, err
		}
		if !ok || size > len(b) {
			return frames, b, nil
		}
		frames = append(frames, b[:size])
		b = b[size:]
	}
}

// Frames do not depend on how the bytes arrive.
func FuzzHeader(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x0dselect 1\x00X\x00\x00\x00\x04"), []byte{1, 2, 3}, uint16(100))
	f.Add(AppendReady(AppendError(nil, Fatal, "08P01", "no"), StatusIdle), []byte{0}, uint16(1000))
	f.Add([]byte("D\xff\xff\xff\xff"), []byte{4}, uint16(10))
	f.Add([]byte("S\x00\x00\x00\x03S\x00\x00\x00\x04"), []byte{7, 1}, uint16(4))
	f.Fuzz(func(t *testing.T, b, chunks []byte, limit16 uint16) {
		limit := int(limit16)
		frames, rest, err := walk(b, limit)
		if sum := len(bytes.Join(frames, nil)) + len(rest); err == nil && sum != len(b) {
			t.Fatalf("%d bytes have become %d", len(b), sum)
		}
		for _, frame := range frames {
			if len(frame) < HeaderSize || len(frame) > limit+1 || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-1 {
				t.Fatalf("frame %q with a limit of %d", frame, limit)
			}
		}
		// As a relay does that streams: a header is looked at when it is there, what follows passes as it comes.
		var (
			sizes  []int
			buf    []byte
			remain int
			failed error
		)
		for i, left := 0, b; len(left) > 0 && failed == nil; i++ {
			n := len(left)
			if len(chunks) > 0 {
				n = min(n, 1+int(chunks[i%len(chunks)]))
			}
			buf = append(buf, left[:n]...)
			left = left[n:]
			for {
				pass := min(remain, len(buf))
				buf, remain = buf[pass:], remain-pass
				if remain > 0 {
					break
				}
				_, size, ok, err := Header(buf, limit)
				if err != nil {
					failed = err
					break
				}
				if !ok {
					break
				}
				sizes = append(sizes, size)
				remain = size
			}
		}
		if (failed == nil) != (err == nil) || err != nil && failed.Error() != err.Error() {
			t.Fatalf("in one piece: %v; in chunks: %v", err, failed)
		}
		begun := len(frames)
		if err == nil && len(rest) >= HeaderSize {
			begun++ // the last one streams, it has no end yet
		}
		if len(sizes) != begun {
			t.Fatalf("%d frames in one piece, %d in chunks", begun, len(sizes))
		}
		for i, frame := range frames {
			if sizes[i] != len(frame) {
				t.Fatalf("frame %d has %d bytes in one piece, %d in chunks", i, len(frame), sizes[i])
			}
		}
	})
}

func FuzzReadParameterStatus(f *testing.F) {
	f.Add([]byte("TimeZone\x00UTC\x00"))
	f.Add([]byte("a\x00\x00"))
	f.Add([]byte("\x00\x00"))
	f.Add([]byte("a\x00b\x00c"))
	f.Fuzz(func(t *testing.T, body []byte) {
		name, value, ok := ReadParameterStatus(body)
		// The body is right exactly if it is the two strings as they are written.
		written := AppendParameterStatus(nil, name, value)[HeaderSize:]
		if ok && (name == "" || !bytes.Equal(written, body)) {
			t.Fatalf("%q was read as %q = %q", body, name, value)
		}
		parts := bytes.Split(body, []byte{0})
		if right := len(parts) == 3 && len(parts[0]) > 0 && len(parts[2]) == 0; right != ok {
			t.Fatalf("%q: ok is %v", body, ok)
		}
	})
}
