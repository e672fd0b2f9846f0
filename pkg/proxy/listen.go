package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/eventloop"
)

// acceptsPerCall bounds how many clients are accepted before others get their turn.
const acceptsPerCall = 64

// listener is a listening socket in the loop.
type listener struct {
	conn    eventloop.Conn
	p       *Proxy
	addr    netip.AddrPort
	unix    string
	lock    *os.File
	retry   eventloop.Timer
	passing bool // passthrough is allowed here
}

// listen opens one listener and hands it to the loop.
func (p *Proxy) listen(spec Listener) error {
	l := &listener{p: p, unix: spec.Unix, passing: spec.Unix != "" || spec.TCP.Addr().IsLoopback()}
	open := l.openTCP
	if spec.Unix != "" {
		open = l.openUnix
	}
	fd, err := open(spec)
	if err != nil {
		l.unlock()
		return err
	}
	p.listeners = append(p.listeners, l)
	if err := p.loop.Add(&l.conn, fd, l); err != nil {
		return fmt.Errorf("cannot watch listener: %w", err)
	}
	return nil
}

func (l *listener) openTCP(spec Listener) (int, error) {
	family := unix.AF_INET
	var sa unix.Sockaddr
	if a := spec.TCP.Addr(); a.Is4() {
		sa = &unix.SockaddrInet4{Port: int(spec.TCP.Port()), Addr: a.As4()}
	} else {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(spec.TCP.Port()), Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("listen_addr %s: %w", spec.TCP, err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if family == unix.AF_INET6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err := unix.Bind(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("cannot listen on %s: %w", spec.TCP, err)
	}
	if err := unix.Listen(fd, spec.Backlog); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("cannot listen on %s: %w", spec.TCP, err)
	}
	l.addr = localAddr(fd, spec.TCP)
	tuneAll(fd, l.p.set.KeepAlive)
	if spec.Defer > 0 {
		setPositive(fd, unix.TCP_DEFER_ACCEPT, int((spec.Defer+time.Second-1)/time.Second))
	}
	return fd, nil
}

// localAddr tells the port that the kernel chose for port 0.
func localAddr(fd int, asked netip.AddrPort) netip.AddrPort {
	switch sa, _ := unix.Getsockname(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(asked.Addr(), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(asked.Addr(), uint16(sa.Port))
	}
	return asked
}

// openUnix makes a Unix socket beside a lock file, so that a socket left by a crash is replaced and one in use is not.
func (l *listener) openUnix(spec Listener) (int, error) {
	if err := l.lockUnix(spec.Unix); err != nil {
		return -1, err
	}
	if info, err := os.Lstat(spec.Unix); err == nil && info.Mode().Type() != fs.ModeSocket {
		return -1, fmt.Errorf("cannot replace %s: it is not a socket", spec.Unix)
	}
	if err := os.Remove(spec.Unix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return -1, fmt.Errorf("cannot replace Unix socket %s: %w", spec.Unix, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("unix_socket_dir: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: spec.Unix})
	bound := err == nil
	if err == nil && spec.Group >= 0 {
		err = os.Chown(spec.Unix, -1, spec.Group)
	}
	if err == nil {
		err = os.Chmod(spec.Unix, spec.Mode)
	}
	if err == nil {
		err = unix.Listen(fd, spec.Backlog)
	}
	if err != nil {
		_ = unix.Close(fd)
		if bound {
			_ = os.Remove(spec.Unix)
		}
		return -1, fmt.Errorf("cannot listen on Unix socket %s: %w", spec.Unix, err)
	}
	return fd, nil
}

func (l *listener) lockUnix(path string) error {
	for {
		f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("cannot lock Unix socket %s: %w", path, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			return fmt.Errorf("cannot listen on Unix socket %s: another process uses it", path)
		}
		// Who had it before may have removed the file since it was opened here: then another one is the lock.
		mine, err := f.Stat()
		if current, err2 := os.Stat(f.Name()); err == nil && err2 == nil && os.SameFile(mine, current) {
			l.lock = f
			return nil
		}
		_ = f.Close()
	}
}

func (l *listener) unlock() {
	if l.lock != nil {
		_ = os.Remove(l.lock.Name())
		_ = l.lock.Close()
		l.lock = nil
	}
}

func (l *listener) close() {
	if !l.conn.Open() && l.lock == nil {
		return
	}
	l.p.loop.Unset(&l.retry)
	l.conn.Close()
	if l.unix != "" {
		_ = os.Remove(l.unix)
	}
	l.unlock()
}

// Ready accepts what waits.
func (l *listener) Ready(eventloop.Events) {
	for range acceptsPerCall {
		fd, from, err := l.conn.Accept()
		switch {
		case errors.Is(err, eventloop.ErrWouldBlock):
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// Out of descriptors or memory: edge-triggered readiness will not come again for those that wait.
			l.p.log.Error("cannot accept clients, retrying", "error", err)
			l.p.loop.Set(&l.retry, l.p.loop.Now()+100*time.Millisecond, func() { l.Ready(0) })
			return
		case err != nil:
			continue // a client that was gone before it was accepted
		}
		l.accepted(fd, from)
	}
	l.p.loop.Again(&l.conn)
}

func (l *listener) accepted(fd int, from netip.AddrPort) {
	p := l.p
	p.nextID++
	c := &client{p: p, id: p.nextID, since: p.loop.Now(), state: stateLogin, readable: true, addr: from, isUnix: l.unix != ""}
	c.pc.Ref = c
	if !c.isUnix {
		tuneRest(fd, p.set.KeepAlive)
	}
	if err := p.loop.Add(&c.conn.Conn, fd, c); err != nil {
		p.log.Error("cannot watch client", "error", err)
		return
	}
	c.index = len(p.clients)
	p.clients = append(p.clients, c)
	p.counters.Accepted++
	c.beginLogin(l.passing)
	p.loop.Again(&c.conn.Conn)
}

// remove takes an ended client off the list.
func (p *Proxy) remove(c *client) {
	last := len(p.clients) - 1
	p.clients[c.index] = p.clients[last]
	p.clients[c.index].index = c.index
	p.clients[last] = nil
	p.clients = p.clients[:last]
	if p.draining && !p.stopping && last == 0 {
		p.stop()
	}
}

// tune sets a TCP connection's options; what a kernel does not know is left out.
func tune(fd int, ka KeepAlive) {
	tuneAll(fd, ka)
	tuneRest(fd, ka)
}

// tuneAll sets what a listener hands down to the connections it accepts, so that none needs a call of its own.
func tuneAll(fd int, ka KeepAlive) {
	on := 0
	if ka.On {
		on = 1
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, on)
}

// tuneRest sets what is only set where somebody asked for it. A listener could not go back to the system's own value.
func tuneRest(fd int, ka KeepAlive) {
	if ka.On {
		setPositive(fd, unix.TCP_KEEPIDLE, int(ka.Idle/time.Second))
		setPositive(fd, unix.TCP_KEEPINTVL, int(ka.Interval/time.Second))
		setPositive(fd, unix.TCP_KEEPCNT, ka.Count)
	}
	setPositive(fd, unix.TCP_USER_TIMEOUT, int(ka.UserTimeout/time.Millisecond))
	if ka.SocketBuffer > 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, ka.SocketBuffer)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, ka.SocketBuffer)
	}
}

func setPositive(fd, opt, v int) {
	if v > 0 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, opt, v)
	}
}

// Addrs are the addresses listened on, after Listen: TCP ones with the port the kernel chose, and paths of Unix sockets.
func (p *Proxy) Addrs() []net.Addr {
	var out []net.Addr
	for _, l := range p.listeners {
		if l.unix != "" {
			out = append(out, &net.UnixAddr{Name: l.unix, Net: "unix"})
		} else {
			out = append(out, net.TCPAddrFromAddrPort(l.addr))
		}
	}
	return out
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
