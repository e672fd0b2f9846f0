package eventloop

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// readAll reads to the end of what is there, in pieces.
func readAll(c *Conn, piece int) (got string, err error) {
	b := make([]byte, piece)
	for {
		n, err := c.Read(b)
		if err != nil {
			return got, err
		}
		got += string(b[:n])
	}
}

type report struct {
	ev  Events
	got string
	err error
}

func TestAHandlerIsToldWhenThereAreBytes(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	reports := make(chan report, 10)
	_, p := connect(t, l, func(h *handler, ev Events) {
		got, err := readAll(&h.Conn, 4)
		reports <- report{ev, got, err}
	})
	for _, s := range []string{"a", "some more than a piece", "b"} {
		p.say(s)
		if r := await(t, reports); r != (report{Readable, s, ErrWouldBlock}) {
			t.Errorf("got %+v", r)
		}
	}
}

// Edge-triggered: what is left unread is not told again, new bytes are.
func TestReadinessIsToldOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var calls int
	heard := make(chan string, 10)
	_, p := connect(t, l, func(h *handler, _ Events) {
		calls++
		b := make([]byte, 4)
		n, _ := h.Read(b)
		heard <- string(b[:n])
	})
	p.say("0123456789")
	if got := await(t, heard); got != "0123" {
		t.Errorf("got %q", got)
	}
	settled(t, l)
	on(t, l, func() {
		if calls != 1 {
			t.Errorf("called %d times for one arrival", calls)
		}
	})
	p.say("x")
	if got := await(t, heard); got != "4567" {
		t.Errorf("got %q", got)
	}
}

func TestTheEndOfAPeerIsHangUpAfterItsLastBytes(t *testing.T) {
	for name, end := range map[string]func(p *peer) error{
		"close":    func(p *peer) error { return p.Close() },
		"half":     func(p *peer) error { return shutdown(p) },
		"half TCP": nil,
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.CheckLeaks(t)
			l := running(t)
			reports := make(chan report, 10)
			h, p := connect(t, l, func(h *handler, ev Events) {
				got, err := readAll(&h.Conn, 3)
				reports <- report{ev, got, err}
			})
			if end == nil {
				on(t, l, h.Close)
				h, p = connectTCP(t, l, h)
				end = shutdown
			}
			p.say("last words")
			if err := end(p); err != nil {
				t.Fatal(err)
			}
			// The bytes may be told before the end, and the end be read before it is told.
			var r report
			for r.ev&HangUp == 0 || !errors.Is(r.err, io.EOF) {
				next := await(t, reports)
				r = report{r.ev | next.ev, r.got + next.got, next.err}
			}
			if r != (report{Readable | HangUp, "last words", io.EOF}) {
				t.Errorf("got %+v", r)
			}
			if name != "close" {
				// The other direction goes on.
				on(t, l, func() {
					if n, err := h.Write([]byte("still here")); n != 10 || err != nil {
						t.Errorf("wrote %d, %v", n, err)
					}
					h.CloseWrite()
				})
				if got, err := io.ReadAll(p); err != nil || string(got) != "still here" {
					t.Errorf("heard %q, %v", got, err)
				}
			}
		})
	}
}

func shutdown(p *peer) error {
	raw, err := p.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = syscall.Shutdown(int(fd), syscall.SHUT_WR) })
	return errors.Join(err, failed)
}

// connectTCP is connect over loopback, for h.
func connectTCP(t *testing.T, l *Loop, h *handler) (*handler, *peer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	dup := func(c net.Conn) int {
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	fd, other := dup(accepted), dup(dialed)
	on(t, l, func() {
		if err := l.Add(&h.Conn, fd, h); err != nil {
			t.Error(err)
		}
	})
	return h, newPeer(t, other)
}

func TestAResetIsAnErrorOfRead(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	reports := make(chan report, 10)
	h := &handler{}
	h.ready = func(ev Events) {
		got, err := readAll(&h.Conn, 100)
		reports <- report{ev, got, err}
	}
	_, p := connectTCP(t, l, h)
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if r := await(t, reports); r.ev != Readable|HangUp || !errors.Is(r.err, syscall.ECONNRESET) {
		t.Errorf("got %+v", r)
	}
	on(t, l, func() {
		if _, err := h.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v", err)
		}
	})
}

// A slow reader: what does not fit waits for Writable, and arrives whole.
func TestAWriterWaitsForItsReader(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var (
		left     = data
		partial  int
		writable int
		ended    = make(chan error, 1)
	)
	write := func(h *handler) {
		for len(left) > 0 {
			n, err := h.Write(left)
			if err != nil && !errors.Is(err, ErrWouldBlock) {
				ended <- err
				return
			}
			if err != nil {
				h.WantWrite(true)
				h.WantWrite(true) // twice is once
				return
			}
			if n < len(left) {
				partial++
			}
			left = left[n:]
		}
		h.WantWrite(false)
		ended <- nil
	}
	h, p := connect(t, l, func(h *handler, ev Events) {
		if ev&Writable == 0 {
			return
		}
		writable++
		write(h)
	})
	on(t, l, func() {
		write(h)
		if len(left) == 0 || partial == 0 {
			t.Errorf("%d bytes fit into a socket, %d partial writes", len(data)-len(left), partial)
		}
	})
	// Nobody reads: nothing is writable.
	settled(t, l)
	on(t, l, func() {
		if writable > 0 {
			t.Errorf("writable %d times while nobody reads", writable)
		}
	})
	if got := p.hear(len(data)); got != string(data) {
		t.Error("other bytes have arrived")
	}
	if err := await(t, ended); err != nil {
		t.Fatal(err)
	}
	// Not wanted any more, not told any more.
	var before int
	on(t, l, func() { before = writable })
	if before == 0 {
		t.Error("everything was written with no Writable")
	}
	on(t, l, func() {
		if n, err := h.Write([]byte("x")); n != 1 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	})
	p.hear(1)
	settled(t, l)
	on(t, l, func() {
		if writable != before {
			t.Errorf("writable %d times without wanting", writable-before)
		}
	})
}

// WantWrite on a socket that can be written to is answered at once.
func TestWantingToWriteIsAnsweredAtOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	events := make(chan Events, 10)
	h, _ := connect(t, l, func(h *handler, ev Events) {
		h.WantWrite(false)
		events <- ev
	})
	for range 3 {
		on(t, l, func() { h.WantWrite(true) })
		if ev := await(t, events); ev != Writable {
			t.Errorf("got %b", ev)
		}
	}
}

func TestAClosedConnDoesNothing(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	check := func(name string, c *Conn) {
		on(t, l, func() {
			if c.Open() || c.FD() != -1 {
				t.Errorf("%s: open %v, descriptor %d", name, c.Open(), c.FD())
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%s: read %d, %v", name, n, err)
			}
			if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%s: wrote %d, %v", name, n, err)
			}
			c.WantWrite(true)
			c.CloseWrite()
			c.Close()
			l.Again(c)
		})
		settled(t, l)
	}
	check("zero", &Conn{})
	h, p := connect(t, l, func(*handler, Events) { t.Error("a closed Conn's handler was called") })
	on(t, l, func() {
		if !h.Open() || h.FD() < 0 {
			t.Errorf("open %v, descriptor %d", h.Open(), h.FD())
		}
		h.Close()
	})
	check("closed", &h.Conn)
	if got, err := io.ReadAll(p); err != nil || len(got) > 0 {
		t.Errorf("the peer got %q, %v", got, err)
	}
}

func TestReadingOrWritingNothingIsNoEnd(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	h, _ := connect(t, l, func(*handler, Events) {})
	on(t, l, func() {
		if n, err := h.Read(nil); n != 0 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		if n, err := h.Write(nil); n != 0 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	})
}

// The loop owns a descriptor also when it cannot watch it.
func TestAnUnpollableDescriptorIsClosed(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		h := &handler{}
		if err := l.Add(&h.Conn, fd, h); err == nil {
			h.Close() // kqueue can watch files
		} else if h.Open() {
			t.Error("open after a failed Add")
		}
	})
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the descriptor is still there: %v", err)
	}
}

// Two are ready in one turn, and the handler of whichever is called first closes the other: its event is stale.
func TestAClosedConnGetsNoEventOfTheSameTurn(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	for range 20 {
		var called int
		var hs [2]*handler
		var ps [2]*peer
		for i := range hs {
			hs[i], ps[i] = connect(t, l, func(*handler, Events) {
				called++
				hs[1-i].Close()
			})
		}
		on(t, l, func() {
			ps[0].say("x")
			ps[1].say("x")
		})
		settled(t, l)
		on(t, l, func() {
			if called != 1 {
				t.Errorf("%d of two handlers were called", called)
			}
			hs[0].Close()
			hs[1].Close()
		})
	}
}

// As before, but the number of the closed descriptor is used again at once, by another connection.
func TestAReusedDescriptorGetsNoEventOfItsPredecessor(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	for range 20 {
		var (
			hs        [2]*handler
			ps        [2]*peer
			successor handler
			stale     int
			reused    bool
		)
		successor.ready = func(ev Events) { stale++ }
		fresh, other := socketpair(t)
		quiet := newPeer(t, other)
		for i := range hs {
			hs[i], ps[i] = connect(t, l, func(*handler, Events) {
				if reused {
					t.Error("a closed Conn's handler was called")
					return
				}
				number := hs[1-i].FD()
				hs[1-i].Close()
				fd, err := unix.FcntlInt(uintptr(fresh), unix.F_DUPFD_CLOEXEC, number)
				if err != nil || fd != number {
					t.Errorf("descriptor %d instead of %d: %v", fd, number, err)
					return
				}
				reused = true
				if err := l.Add(&successor.Conn, fd, &successor); err != nil {
					t.Error(err)
				}
			})
		}
		on(t, l, func() {
			ps[0].say("x")
			ps[1].say("x")
		})
		settled(t, l)
		on(t, l, func() {
			if !reused || stale > 0 {
				t.Errorf("reused %v, stale events %d", reused, stale)
			}
		})
		// The successor gets its own.
		quiet.say("x")
		settled(t, l)
		on(t, l, func() {
			if stale != 1 {
				t.Errorf("the new connection got %d events", stale)
			}
			hs[0].Close()
			hs[1].Close()
			successor.Close()
		})
		if err := syscall.Close(fresh); err != nil {
			t.Fatal(err)
		}
	}
}

// More than fit into one turn.
func TestManyReadyAtOnceAreAllTold(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	const n = maxEvents + 50
	told := make([]int, n)
	var peers []*peer
	all := make(chan struct{})
	count := 0
	for i := range n {
		_, p := connect(t, l, func(*handler, Events) {
			told[i]++
			if count++; count == n {
				close(all)
			}
		})
		peers = append(peers, p)
	}
	on(t, l, func() {
		for _, p := range peers {
			p.say("x")
		}
	})
	await(t, all)
	settled(t, l)
	on(t, l, func() {
		if slices.Max(told) != 1 {
			t.Errorf("told %v", told)
		}
	})
}

// One connection has no end of bytes. It asks to be called again instead of keeping the loop: everything else goes on.
func TestAgainIsFair(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var (
		order   strings.Builder
		endless *handler
		timer   Timer
		done    = make(chan struct{})
		turns   int
	)
	endless, _ = connect(t, l, func(h *handler, ev Events) {
		if ev != 0 {
			return // its peer is gone, at the end of the test
		}
		order.WriteByte('e')
		if turns++; turns < 100_000 && order.Len()-turns < 3 {
			l.Again(&h.Conn)
			l.Again(&h.Conn) // twice is once
			return
		}
		close(done)
	})
	_, p := connect(t, l, func(h *handler, _ Events) {
		_, _ = readAll(&h.Conn, 10)
		order.WriteByte('b')
	})
	on(t, l, func() {
		l.Again(&endless.Conn)
		l.Set(&timer, l.Now(), func() { order.WriteByte('t') })
	})
	p.say("x")
	l.Post(func() { order.WriteByte('p') })
	await(t, done)
	on(t, l, func() {
		rest := strings.Map(func(r rune) rune {
			if r == 'e' {
				return -1
			}
			return r
		}, order.String())
		if got := []byte(rest); !slices.Equal(sorted(got), []byte("bpt")) {
			t.Errorf("while one was called %d times the others were %q", turns, rest)
		}
	})
}

func sorted(b []byte) []byte {
	slices.Sort(b)
	return b
}

// Two that ask to be called again take turns.
func TestAgainTakesTurns(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var order strings.Builder
	done := make(chan struct{})
	var hs [2]*handler
	for i := range hs {
		hs[i], _ = connect(t, l, func(h *handler, _ Events) {
			fmt.Fprint(&order, i)
			if order.Len() < 20 {
				l.Again(&h.Conn)
			} else if order.Len() == 20 {
				close(done)
			}
		})
	}
	on(t, l, func() {
		l.Again(&hs[0].Conn)
		l.Again(&hs[1].Conn)
	})
	await(t, done)
	on(t, l, func() {
		if got := order.String()[:20]; got != strings.Repeat("01", 10) {
			t.Errorf("order %s", got)
		}
	})
}

// A Conn that is closed, and perhaps opened for something else, is not called for what was asked before.
func TestClosingForgetsAgain(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var calls int
	var hs [2]*handler
	for i := range hs {
		hs[i], _ = connect(t, l, func(*handler, Events) {
			calls++
			hs[1-i].Close() // which is on the list being worked off
		})
	}
	on(t, l, func() {
		l.Again(&hs[0].Conn)
		l.Again(&hs[1].Conn)
	})
	settled(t, l)
	on(t, l, func() {
		if calls != 1 {
			t.Errorf("%d calls for two of which one closes the other", calls)
		}
		hs[0].Close()
		hs[1].Close()
	})
	fd, other := socketpair(t)
	next, otherNext := socketpair(t)
	newPeer(t, other)
	newPeer(t, otherNext)
	h := &handler{ready: func(ev Events) { t.Errorf("called with events %b", ev) }}
	on(t, l, func() {
		if err := l.Add(&h.Conn, fd, h); err != nil {
			t.Error(err)
		}
		l.Again(&h.Conn)
		h.Close()
		if err := l.Add(&h.Conn, next, h); err != nil {
			t.Error(err)
		}
	})
	settled(t, l)
	on(t, l, func() {
		// And it can ask again.
		h.ready = func(Events) { calls++ }
		l.Again(&h.Conn)
	})
	settled(t, l)
	on(t, l, func() {
		if calls != 2 {
			t.Errorf("%d calls", calls)
		}
	})
}
