package eventloop

import (
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds how long a test waits for what must come.
const patience = 20 * time.Second

// running starts a loop for a test, which ends it and insists that it ended well.
func running(t testing.TB) *Loop {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := await(t, done); err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs fn on the loop and returns when it is done.
func on(t testing.TB, l *Loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { fn(); close(done) }) {
		t.Fatal("the loop has stopped")
	}
	await(t, done)
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("nothing came within %v", patience)
		panic("unreachable")
	}
}

// settled returns when the loop has gone through several turns, so whatever was ready has been told.
func settled(t testing.TB, l *Loop) {
	t.Helper()
	for range 4 {
		on(t, l, func() {})
	}
}

// awaitParked returns when the loop's goroutine waits for the kernel.
func awaitParked(t testing.TB) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			state, _, _ := strings.Cut(stack, "\n")
			if strings.Contains(stack, "eventloop.(*Loop).Run(") && (strings.Contains(state, "[IO wait") || strings.Contains(state, "[syscall")) {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("the loop does not park")
		}
	}
}

// socketpair is two connected sockets: one for a loop, and a blocking one for the test.
func socketpair(t testing.TB) (fd, peer int) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fds[0])
	syscall.CloseOnExec(fds[1])
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// peer is the test's end of a connection.
type peer struct {
	t testing.TB
	*os.File
}

func newPeer(t testing.TB, fd int) *peer {
	t.Helper()
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	p := &peer{t, os.NewFile(uintptr(fd), "peer")}
	if err := p.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (p *peer) say(s string) {
	p.t.Helper()
	if _, err := p.WriteString(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) hear(n int) string {
	p.t.Helper()
	b := make([]byte, n)
	for at := 0; at < n; {
		m, err := p.Read(b[at:])
		if err != nil {
			p.t.Fatalf("after %q: %v", b[:at], err)
		}
		at += m
	}
	return string(b)
}

// handler is a Handler made of a function.
type handler struct {
	Conn
	ready func(ev Events)
}

func (h *handler) Ready(ev Events) { h.ready(ev) }

// connect gives the loop one end of a connection.
func connect(t testing.TB, l *Loop, ready func(h *handler, ev Events)) (*handler, *peer) {
	t.Helper()
	fd, other := socketpair(t)
	h := &handler{}
	h.ready = func(ev Events) { ready(h, ev) }
	on(t, l, func() {
		if err := l.Add(&h.Conn, fd, h); err != nil {
			t.Error(err)
		}
	})
	return h, newPeer(t, other)
}
