package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgtest"
)

// wired is a wire inside TLS, of a loop that does not run, and its peer.
func wired(t *testing.T, version uint16) (*wire, *tls.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dialed.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	_ = dialed.SetDeadline(time.Now().Add(patience))
	_ = accepted.SetDeadline(time.Now().Add(patience))
	_ = accepted.(*net.TCPConn).SetWriteBuffer(16 << 10)
	config := unverified()
	config.MaxVersion = version
	peer := tls.Client(dialed, config)
	shaken := make(chan error, 1)
	go func() { shaken <- peer.Handshake() }()
	s := &secured{blocking: accepted}
	s.conn = tls.Server((*cipherSide)(s), NewClientTLS(TLSPrefer, &tls.Config{}).config)
	if err := errors.Join(s.conn.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	fd, err := duplicate(accepted, KeepAlive{})
	if err != nil {
		t.Fatal(err)
	}
	loop, err := eventloop.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loop.Close)
	w := &wire{}
	if err := loop.Add(&w.Conn, fd, nobody{}); err != nil {
		t.Fatal(err)
	}
	s.enter(&w.Conn, &loop.Buffers)
	w.tls = s
	return w, peer
}

type nobody struct{}

func (nobody) Ready(eventloop.Events) {}

// wait is in the place of the loop.
func wait(t *testing.T, w *wire, events int16) {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.FD()), Events: events}}, int(patience/time.Millisecond))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(w.FD()), Events: events}}, int(patience/time.Millisecond))
	}
	if n != 1 || err != nil {
		t.Fatalf("waiting for the socket: %d, %v", n, err)
	}
}

// arrived waits until at least n bytes of ciphertext are in the socket.
func arrived(t *testing.T, w *wire, n int) {
	t.Helper()
	for got, err := 0, error(nil); got < n; got, err = unix.IoctlGetInt(w.FD(), unix.TIOCINQ) {
		if err != nil {
			t.Fatal(err)
		}
		wait(t, w, unix.POLLIN)
	}
}

// What is left in TLS when a reader's buffer is full, and what has come to the socket since, are read together: nothing
// announces them again.
func TestAShortReadInsideTLSMeansThatNothingIsLeft(t *testing.T) {
	pgtest.CheckLeaks(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		w, peer := wired(t, version)
		say := func(b []byte) {
			if _, err := peer.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		p := make([]byte, 64<<10)
		say(bytes.Repeat([]byte("a"), 100))
		arrived(t, w, 100)
		if n, err := w.Read(p[:50]); n != 50 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		say(bytes.Repeat([]byte("b"), 100))
		say(bytes.Repeat([]byte("c"), 100))
		arrived(t, w, 200)
		if n, err := w.Read(p); n != 250 || err != nil {
			t.Errorf("read %d, %v, there were 250", n, err)
		}
		if n, err := w.Read(p); n != 0 || !errors.Is(err, eventloop.ErrWouldBlock) {
			t.Errorf("then read %d, %v", n, err)
		}
		if err := peer.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wait(t, w, unix.POLLIN)
		if n, err := w.Read(p); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("at the end read %d, %v", n, err)
		}
		w.Close()
	}
}

// A writer that comes again with what was not taken has all of it arrive, once and in order.
func TestWritesInsideTLSAreTakenByWhatTheSocketTakes(t *testing.T) {
	pgtest.CheckLeaks(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		w, peer := wired(t, version)
		all := make([]byte, 8<<20)
		for i := range all {
			all[i] = byte(rng.Uint32())
		}
		// Until nothing more fits, nobody reads: the ciphertext that waits is bounded.
		sent := 0
		for {
			n, err := w.Write(all[sent:])
			sent += n
			if n == 0 && errors.Is(err, eventloop.ErrWouldBlock) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, lent := w.tls.bufs.Lent(); lent > 64<<10 || !w.unsent() {
			t.Errorf("%d bytes are lent, unsent %v", lent, w.unsent())
		}
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, len(all))
			_, _ = io.ReadFull(peer, b)
			got <- b
		}()
		for sent < len(all) {
			n, err := w.Write(all[sent:min(len(all), sent+64<<10+rng.IntN(100000))])
			sent += n
			if err != nil && !errors.Is(err, eventloop.ErrWouldBlock) {
				t.Fatal(err)
			}
			if n == 0 {
				wait(t, w, unix.POLLOUT)
			}
		}
		if !bytes.Equal(<-got, all) {
			t.Error("something else arrived")
		}
		if n, _ := w.tls.bufs.Lent(); n != 0 {
			t.Errorf("%d buffers are lent when all is sent", n)
		}
		w.Close()
	}
}
