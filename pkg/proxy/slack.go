package proxy

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"
)

// maxSlack is how much room an empty buffer of an idle tls.Conn may keep, in bytes.
const maxSlack = 2 << 10

// A tls.Conn keeps its buffers for ever at the size that the largest record needed, up to 32 KiB, and those of the
// handshake too: of an idle client that is most of what it costs. There is no other way to them than by their names;
// where a name is not there any more nothing is done, and the tests of memory tell.
var (
	rawInput  = fieldOf[bytes.Buffer]("rawInput")
	handInput = fieldOf[bytes.Buffer]("hand")
	plain     = fieldOf[bytes.Reader]("input") // points into rawInput's memory
)

// fieldOf finds a field of tls.Conn; nil when it is not what is expected.
func fieldOf[T any](name string) func(*tls.Conn) *T {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
	if !ok || f.Type != reflect.TypeFor[T]() {
		return nil
	}
	return func(c *tls.Conn) *T { return (*T)(unsafe.Add(unsafe.Pointer(c), f.Offset)) }
}

// slim has a connection that nothing is being read from let go of empty buffers with more room than this.
func (s *secured) slim(room int) {
	if rawInput == nil || handInput == nil || plain == nil {
		return
	}
	raw, hand, left := rawInput(s.conn), handInput(s.conn), plain(s.conn)
	if raw.Len() == 0 && left.Len() == 0 && raw.Cap() > room {
		*raw, *left = bytes.Buffer{}, bytes.Reader{}
	}
	if hand.Len() == 0 && hand.Cap() > room {
		*hand = bytes.Buffer{}
	}
}
