package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
)

const (
	// maxSealed is how much is encrypted at once, in bytes of plaintext: whole TLS records whose ciphertext fits the
	// largest lent buffer. More is not taken before the ciphertext is with the kernel.
	maxSealed = 3 * 16 << 10
	// maxUnsent bounds the ciphertext that waits, in bytes. What the other side makes TLS itself say (answers to key
	// updates, which nobody has to read) comes on top of maxSealed, and may not pile up.
	maxUnsent = 96 << 10
)

// wire is a connection in the loop, in clear or inside TLS. Its methods are those of the embedded Conn, whose own must
// not be used for bytes: they know nothing of TLS.
type wire struct {
	eventloop.Conn
	tls *secured // nil in clear
}

// Read reads what is there. Inside TLS too a short read without an error means that nothing more is there now.
func (w *wire) Read(p []byte) (int, error) {
	if w.tls != nil {
		return w.tls.read(p)
	}
	return w.Conn.Read(p)
}

// Write writes what fits. Whoever is told that less was written comes again with the rest, and with nothing else: inside
// TLS it may be encrypted already, and counts as written only when its ciphertext is with the kernel.
func (w *wire) Write(p []byte) (int, error) {
	if w.tls != nil {
		return w.tls.write(p)
	}
	return w.Conn.Write(p)
}

// over: an error, perhaps the end, follows what was read last. It comes by itself, as that of a socket does.
func (w *wire) over() bool { return w.tls != nil && w.tls.over }

// unsent: there is ciphertext that waits for the socket.
func (w *wire) unsent() bool { return w.tls != nil && len(w.tls.out) > 0 }

// version is that of TLS, for logs.
func (w *wire) version() string {
	if w.tls == nil {
		return "none"
	}
	return tls.VersionName(w.tls.conn.ConnectionState().Version)
}

// CloseWrite ends the sending direction; reading goes on.
func (w *wire) CloseWrite() {
	if w.tls != nil {
		w.tls.sayGoodbye()
	}
	w.Conn.CloseWrite()
}

// Close closes the connection, and says so first where the last record was sent whole.
func (w *wire) Close() {
	if w.tls != nil {
		w.tls.sayGoodbye()
		w.tls.drop()
		w.tls = nil
	}
	w.Conn.Close()
}

// secured is TLS over a socket that does not block. crypto/tls takes a temporary error of a read for what it is, but
// remembers every error of a write and of the handshake for ever: so the net.Conn below it, cipherSide, takes whatever is
// written, and a handshake is either a coroutine (a client's) or blocks on a goroutine of its own (a server's).
type secured struct {
	conn *tls.Conn

	// What is below, one of three: a handshake in its coroutine, a connection that blocks, a socket of the loop.
	shake    *handshake
	blocking net.Conn
	sock     *eventloop.Conn
	bufs     *eventloop.Buffers

	in      []byte // ciphertext to be read before that of the socket
	out     []byte // lent; ciphertext that waits for the socket, from outAt on
	outAt   int
	owed    int  // bytes of plaintext therein of which the caller has not been told yet that they are written
	toEnd   bool // close_notify is not the end, but that of TCP
	over    bool // see wire
	fed     bool // the read under way has got something
	emptied bool // and has emptied the socket by a short read
}

// cipherSide is what crypto/tls reads from and writes to.
type cipherSide secured

// nothingYet is what crypto/tls takes for an error that passes.
type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing to be read yet" }
func (nothingYet) Timeout() bool   { return true }
func (nothingYet) Temporary() bool { return true }

var errNothingYet error = nothingYet{}

var errUnsent = errors.New("the other side has TLS answer and does not read the answers")

// enter has the loop's socket take the place of what was below during the handshake.
func (s *secured) enter(sock *eventloop.Conn, bufs *eventloop.Buffers) {
	s.shake, s.blocking = nil, nil
	s.sock, s.bufs = sock, bufs
	s.slim(0)
}

func (s *secured) read(p []byte) (n int, err error) {
	s.emptied = false
	for n < len(p) && err == nil {
		s.fed = n > 0
		var m int
		m, err = s.conn.Read(p[n:])
		n += m
	}
	s.fed = false
	if err == io.EOF && s.toEnd { //nolint:errorlint // as crypto/tls says it
		err = s.tcpEnd()
	}
	if err == errNothingYet { //nolint:errorlint // crypto/tls hands it on as it is, and this is the hot path
		s.slim(maxSlack)
		if n > 0 {
			return n, nil
		}
		return 0, eventloop.ErrWouldBlock
	}
	if n > 0 && err != nil {
		s.over, err = true, nil // crypto/tls says it again
	}
	return n, err
}

// tcpEnd reads and forgets what comes behind close_notify.
func (s *secured) tcpEnd() error {
	var b [256]byte
	for {
		if _, err := s.sock.Read(b[:]); errors.Is(err, eventloop.ErrWouldBlock) {
			return errNothingYet
		} else if err != nil {
			return err
		}
	}
}

func (s *secured) write(p []byte) (n int, err error) {
	if len(s.out) > 0 {
		if err := s.flush(); err != nil {
			return 0, err
		}
		n = min(s.owed, len(p))
		s.owed = 0
	}
	for n < len(p) {
		part := min(len(p)-n, maxSealed)
		s.out = s.bufs.Lend(part + part>>6 + 128)
		s.outAt = 0
		if _, err := s.conn.Write(p[n : n+part]); err != nil {
			return n, err
		}
		if err := s.flush(); err != nil {
			s.owed = part
			if n > 0 && errors.Is(err, eventloop.ErrWouldBlock) {
				err = nil
			}
			return n, err
		}
		n += part
	}
	return n, nil
}

// flush has the kernel take the ciphertext that waits; ErrWouldBlock when something is left.
func (s *secured) flush() error {
	if s.outAt < len(s.out) {
		n, err := s.sock.Write(s.out[s.outAt:])
		s.outAt += n
		if err != nil {
			return err
		}
		if s.outAt < len(s.out) {
			return eventloop.ErrWouldBlock
		}
	}
	s.drop()
	return nil
}

func (s *secured) drop() {
	if s.out != nil {
		s.bufs.Return(s.out)
		s.out, s.outAt = nil, 0
	}
}

// sayGoodbye sends close_notify. It cannot follow a record that was cut short.
func (s *secured) sayGoodbye() {
	if len(s.out) == 0 {
		_ = s.conn.CloseWrite()
	}
	_ = s.flush()
}

func (c *cipherSide) Read(p []byte) (int, error) {
	if c.shake != nil {
		if err := c.shake.awaitInput((*secured)(c)); err != nil {
			return 0, err
		}
	}
	if len(c.in) > 0 {
		n := copy(p, c.in)
		if c.in = c.in[n:]; len(c.in) == 0 {
			c.in = nil
		}
		return n, nil
	}
	if c.blocking != nil {
		return c.blocking.Read(p)
	}
	if c.fed && c.emptied {
		return 0, errNothingYet // and whoever wants to know better asks again
	}
	n, err := c.sock.Read(p)
	c.emptied = n < len(p)
	if errors.Is(err, eventloop.ErrWouldBlock) {
		return 0, errNothingYet
	}
	return n, err
}

func (c *cipherSide) Write(b []byte) (int, error) {
	switch {
	case c.shake != nil:
		c.shake.flight = append(c.shake.flight, b...)
	case c.blocking != nil:
		return c.blocking.Write(b)
	case len(c.out)-c.outAt+len(b) > maxUnsent:
		return 0, errUnsent
	case c.out == nil:
		c.out = append(c.bufs.Lend(len(b)), b...)
		c.outAt = 0
	default:
		c.out = grow(c.bufs, c.out, b)
	}
	return len(b), nil
}

// The rest of net.Conn is not for crypto/tls to decide: who closes, and when time is over, is the owner's business.

func (c *cipherSide) Close() error                     { return nil }
func (c *cipherSide) SetDeadline(time.Time) error      { return nil }
func (c *cipherSide) SetReadDeadline(time.Time) error  { return nil }
func (c *cipherSide) SetWriteDeadline(time.Time) error { return nil }
func (c *cipherSide) LocalAddr() net.Addr              { return cipherAddr{} }
func (c *cipherSide) RemoteAddr() net.Addr             { return cipherAddr{} }

type cipherAddr struct{}

func (cipherAddr) Network() string { return "tls" }
func (cipherAddr) String() string  { return "tls" }

// commonName is that of the peer's certificate; verified says that there is one and that it was verified.
func (w *wire) commonName() (name string, verified bool) {
	if w.tls == nil {
		return "", false
	}
	state := w.tls.conn.ConnectionState()
	if len(state.VerifiedChains) == 0 {
		return "", false
	}
	return state.PeerCertificates[0].Subject.CommonName, true
}
