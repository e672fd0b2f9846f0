package eventloop

import (
	"errors"
	"io"
	"net/netip"
	"syscall"
)

// ErrWouldBlock says that nothing can be read or written now; the handler is called when it can.
var ErrWouldBlock = errors.New("would block")

// Conn is a non-blocking socket owned by a loop. It is meant to be embedded; the zero value is closed.
type Conn struct {
	fd        int // -1 when closed; 0 only before Add
	gen       uint32
	loop      *Loop
	handler   Handler
	again     bool
	wantWrite bool
}

// Add registers fd, which must be in non-blocking mode; the loop owns it from now on, also when Add fails.
func (l *Loop) Add(c *Conn, fd int, h Handler) error {
	l.gen++
	*c = Conn{fd: fd, gen: l.gen, loop: l, handler: h}
	for fd >= len(l.conns) {
		l.conns = append(l.conns, nil)
	}
	if err := l.poll.add(fd, c.gen); err != nil {
		closeFD(fd)
		c.fd = -1
		return err
	}
	l.conns[fd] = c
	return nil
}

// FD is the descriptor, -1 when closed.
func (c *Conn) FD() int {
	if c.loop == nil {
		return -1
	}
	return c.fd
}

// Open reports whether the descriptor is registered.
func (c *Conn) Open() bool { return c.loop != nil && c.fd >= 0 }

// Accept takes a connection that waits at a listening socket; ErrWouldBlock when none does. The descriptor is in
// non-blocking mode and the caller's. A peer on a Unix socket has no address: from is not valid then.
func (c *Conn) Accept() (fd int, from netip.AddrPort, err error) {
	if !c.Open() {
		return -1, from, io.ErrClosedPipe
	}
	fd, from, errno := accept(c.fd)
	switch errno {
	case 0:
		return fd, from, nil
	case syscall.EAGAIN:
		return -1, from, ErrWouldBlock
	}
	return -1, from, errno
}

// Read reads what is there: ErrWouldBlock when nothing is, io.EOF at the end.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.Open() {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, errno := receive(c.fd, p)
		switch errno {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			return n, nil
		case syscall.EAGAIN:
			return 0, ErrWouldBlock
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// Write writes what fits, possibly less than p with a nil error; ErrWouldBlock when nothing does.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.Open() {
		return 0, io.ErrClosedPipe
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, errno := send(c.fd, p)
		switch errno {
		case 0:
			return n, nil
		case syscall.EAGAIN:
			return 0, ErrWouldBlock
		case syscall.EINTR:
			continue
		}
		return 0, errno
	}
}

// WantWrite turns Writable events on or off.
func (c *Conn) WantWrite(on bool) {
	if !c.Open() || c.wantWrite == on {
		return
	}
	c.wantWrite = on
	// It can only fail for a descriptor that is not registered, which Open excludes.
	_ = c.loop.poll.wantWrite(c.fd, c.gen, on)
}

// CloseWrite ends the sending direction; reading goes on.
func (c *Conn) CloseWrite() {
	if c.Open() {
		_ = syscall.Shutdown(c.fd, syscall.SHUT_WR)
	}
}

// Close closes the descriptor; the handler is not called any more. Closing twice is harmless.
func (c *Conn) Close() {
	if !c.Open() {
		return
	}
	if c.again {
		c.loop.forget(c)
	}
	c.loop.conns[c.fd] = nil
	closeFD(c.fd)
	c.fd = -1
}
