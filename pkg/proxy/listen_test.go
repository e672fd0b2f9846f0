package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// listening makes a proxy that listens and does not run; the test ends it.
func listening(t *testing.T, listeners ...Listener) (*Proxy, error) {
	t.Helper()
	set := testSettings("127.0.0.1", 1, nil)
	set.Listeners = listeners
	p, err := New(set, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, l := range p.listeners {
			l.close()
		}
		p.loop.Close()
	})
	return p, p.Listen()
}

func loopback(addr string, port int) Listener {
	return Listener{TCP: netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)), Backlog: 16}
}

func TestClientsComeFromBothLoopbacksAndTheUnixSocket(t *testing.T) {
	pgtest.CheckLeaks(t)
	path := filepath.Join(t.TempDir(), ".s.PGSQL.6432")
	f := pgtest.NewFake(t, echo)
	set := fakeSettings(f, nil)
	set.Listeners = []Listener{loopback("127.0.0.1", 0), loopback("::1", 0), {Unix: path, Mode: 0o751, Group: os.Getgid(), Backlog: 16}}
	p := startProxy(t, set)
	addrs := p.Addrs()
	if len(addrs) != 3 {
		t.Fatalf("listening on %v", addrs)
	}
	for _, a := range addrs {
		if a.Network() == "tcp" && a.(*net.TCPAddr).Port == 0 {
			t.Errorf("%v does not tell the port", a)
		}
		conn, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		r := &raw{t, conn}
		if got := r.login().ask("select 7"); got != "select 7" {
			t.Errorf("%v: got %q", a, got)
		}
		_ = conn.Close()
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o751 {
		t.Errorf("the Unix socket has mode %v, %v, want srwxr-x--x", info.Mode(), err)
	}
	p.Stop()
	<-p.ended
	for _, name := range []string{path, path + ".lock"} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", filepath.Base(name), err)
		}
	}
}

func TestASocketLeftByACrashIsReplacedAndOneInUseIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".s.PGSQL.6432")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil { // its lock went with its process
		t.Fatal(err)
	}
	first, err := listening(t, Listener{Unix: path, Mode: 0o700, Group: -1, Backlog: 16})
	if err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Fatalf("the socket was not replaced: %v", err)
	}
	_, err = listening(t, Listener{Unix: path, Mode: 0o700, Group: -1, Backlog: 16})
	if want := "cannot listen on Unix socket " + path + ": another process uses it"; err == nil || err.Error() != want {
		t.Errorf("a second process got %v\nwant %s", err, want)
	}
	if err := dial(); err != nil {
		t.Errorf("the first process lost its socket: %v", err)
	}
	for _, l := range first.listeners {
		l.close()
	}
	if _, err := listening(t, Listener{Unix: path, Mode: 0o700, Group: -1, Backlog: 16}); err != nil {
		t.Errorf("when the first has ended: %v", err)
	}
}

func TestOnlyOneHoldsTheLockOfASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	var holders, taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1500 {
				l := &listener{}
				if l.lockUnix(path) != nil {
					continue
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				taken.Add(1)
				for range 20 {
					runtime.Gosched()
				}
				holders.Add(-1)
				l.unlock()
			}
		})
	}
	wg.Wait()
	if taken.Load() == 0 {
		t.Error("nobody ever got it")
	}
}

func TestListeningFailsInOneSentenceAndLeavesNothingOpen(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	port := busy.Addr().(*net.TCPAddr).Port
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	long := filepath.Join(dir, strings.Repeat("x", 120))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		bad  Listener
		want string
		is   error
	}{
		"a port in use":            {loopback("127.0.0.1", port), fmt.Sprintf("cannot listen on 127.0.0.1:%d: address already in use", port), syscall.EADDRINUSE},
		"an address of others":     {loopback("192.0.2.1", 0), "cannot listen on 192.0.2.1:0: cannot assign requested address", syscall.EADDRNOTAVAIL},
		"no directory":             {Listener{Unix: filepath.Join(dir, "none", "socket"), Group: -1}, "cannot lock Unix socket " + filepath.Join(dir, "none", "socket") + ": open " + filepath.Join(dir, "none", "socket.lock") + ": no such file or directory", syscall.ENOENT},
		"a path that is too long":  {Listener{Unix: long, Group: -1, Backlog: 16}, "cannot listen on Unix socket " + long + ": invalid argument", syscall.EINVAL},
		"a file that is no socket": {Listener{Unix: file, Group: -1, Backlog: 16}, "cannot replace " + file + ": it is not a socket", nil},
		"a group that is not ours": {Listener{Unix: filepath.Join(dir, "group"), Mode: 0o700, Group: 1 << 30, Backlog: 16}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a group that is not ours" && os.Geteuid() == 0 {
				return // root may give files to any group
			}
			pgtest.CheckLeaks(t)
			p, err := listening(t, loopback("127.0.0.1", 0), Listener{Unix: good, Mode: 0o700, Group: -1, Backlog: 16}, c.bad)
			if err == nil || (c.want != "" && err.Error() != c.want) || (c.is != nil && !errors.Is(err, c.is)) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if a := p.Addrs(); len(a) != 0 {
				t.Errorf("still listening on %v", a)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 1 || entries[0].Name() != "file" {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("a file was replaced by a socket: %q, %v", b, err)
	}
}

func TestAcceptedConnectionsHaveTheSocketOptions(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	set := func(ka KeepAlive) *Settings {
		s := fakeSettings(f, nil)
		s.KeepAlive = ka
		return s
	}
	p := startProxy(t, set(KeepAlive{On: true, Idle: 33 * time.Second, UserTimeout: 44 * time.Second}))
	// options are those of the connection that was accepted last.
	options := func() (o struct{ noDelay, keepAlive, idle, userTimeout int }) {
		p.raw(t).login()
		done := make(chan struct{})
		p.loop.Post(func() {
			defer close(done)
			fd := p.clients[len(p.clients)-1].conn.FD()
			o.noDelay, _ = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
			o.keepAlive, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			o.idle, _ = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			o.userTimeout, _ = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		})
		<-done
		return o
	}
	if o := options(); o.noDelay != 1 || o.keepAlive != 1 || o.idle != 33 || o.userTimeout != 44000 {
		t.Errorf("the first client has %+v", o)
	}
	p.reloaded(t, set(KeepAlive{}))
	if o := options(); o.noDelay != 1 || o.keepAlive != 0 || o.idle == 33 || o.userTimeout != 0 {
		t.Errorf("after a reload that asks for nothing a client has %+v", o)
	}
	p.reloaded(t, set(KeepAlive{On: true}))
	if o := options(); o.keepAlive != 1 {
		t.Errorf("after a reload that asks for keepalive a client has %+v", o)
	}
}

func TestTheKernelHoldsASilentConnectionBack(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	s := fakeSettings(f, nil)
	s.Listeners[0].Defer = 30 * time.Second
	p := startProxy(t, s)
	silent := p.raw(t)
	p.raw(t).login() // came later
	if n := p.state().Counters.Accepted; n != 1 {
		t.Errorf("%d connections were accepted, one has spoken", n)
	}
	if got := silent.login().ask("select 7"); got != "select 7" {
		t.Errorf("the one that was held back got %q", got)
	}
}
