package proxy

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// bare logs in over TLS and leaves nothing of the client but its descriptor, so that its own memory does not count.
func bare(t *testing.T, p *pooler, config *tls.Config, use func(*raw)) (fd int) {
	t.Helper()
	r := p.raw(t)
	under := r.conn.(*net.TCPConn)
	r.inTLS(config).login()
	if use != nil {
		use(r)
	}
	control, err := under.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := control.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || fd < 0 {
		t.Fatal(err)
	}
	_ = under.Close()
	return fd
}

func TestAnIdleTLSClientCostsLittleMemory(t *testing.T) {
	const many = 500
	for name, c := range map[string]struct {
		use  func(*raw)
		most int64
	}{
		"that has only logged in":     {nil, 8000},
		"that has asked":              {func(r *raw) { r.send(packet('Q', "select 1\x00")).until('Z') }, 8000},
		"that has asked a long query": {func(r *raw) { r.send(packet('Q', strings.Repeat("x", 60<<10)+"\x00")).until('Z') }, 8000},
	} {
		t.Run(name, func(t *testing.T) {
			p := offeringTLS(t, TLSPrefer, nil)
			var fds []int
			defer func() {
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}()
			for range 20 {
				fds = append(fds, bare(t, p, unverified(), c.use))
			}
			before := heap()
			for range many {
				fds = append(fds, bare(t, p, unverified(), c.use))
			}
			each := (int64(heap()) - int64(before)) / many
			t.Logf("%d bytes of heap for each idle client", each)
			if each > c.most {
				t.Errorf("an idle client costs %d bytes of heap, allowed are %d", each, c.most)
			}
			if s := p.state(); s.BuffersLent != 0 || s.Clients != len(fds) {
				t.Errorf("%d clients hold %d buffers", s.Clients, s.BuffersLent)
			}
		})
	}
}

// A client that reads slowly, over TLS from a server over TLS, holds up the server and little memory.
func TestALargeResultPassesThroughTLSAtTheClientsPace(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := tlsPostgres(t, newAuthority(t).issue("localhost", nil), pgtest.SCRAM)
	set := testSettings("localhost", s.Port, nil)
	set.ServerTLS = NewServerTLS(TLSRequire, &tls.Config{})
	set.ClientTLS = NewClientTLS(TLSRequire, &tls.Config{})
	p := startProxy(t, set)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := unverified()
		config.MaxVersion = version
		r := p.raw(t)
		under := r.conn.(*net.TCPConn)
		if !*encryptedRun {
			r.inTLS(config)
		}
		r.login()
		before := heap()
		first := uint64(0)
		if s := p.state(); len(s.Pools) > 0 {
			first = s.Pools[0].Counts.BytesSent
		}
		r.send(packet('Q', "select repeat('x', 1000) from generate_series(1, 20000)\x00"))
		p.await("it is held up", func(s Snapshot) bool { return s.BytesLent > 0 && s.Pools[0].Counts.BytesSent-first > 1<<20 })
		moved := p.state().Pools[0].Counts.BytesSent - first
		rows, most, lent := 0, int64(0), 0
		for m := (heard{}); m.kind != 'Z'; {
			var err error
			if m, err = r.hear(); err != nil {
				t.Fatal(err)
			}
			if m.kind == 'D' {
				if rows++; len(m.body) != 2+4+1000 || bytes.Trim(m.body[6:], "x") != nil {
					t.Fatalf("row %d is of %d bytes", rows, len(m.body))
				}
			}
			if rows%2000 == 1 {
				most = max(most, int64(heap())-int64(before))
				lent = max(lent, p.state().BytesLent)
			}
		}
		if rows != 20000 {
			t.Errorf("%d rows came", rows)
		}
		if most > 4<<20 || lent > 256<<10 {
			t.Errorf("at most %d bytes of heap and %d lent", most, lent)
		}
		if all := p.state().Pools[0].Counts.BytesSent - first; all < 20_000_000 || moved > 16<<20 {
			t.Errorf("%d bytes of %d had been read while nobody read them", moved, all)
		}
		// A COPY in the other direction.
		r.send(packet('Q', "create temp table if not exists taken (x text); truncate taken; copy taken from stdin\x00")).until('G')
		row := packet('d', strings.Repeat("y", 30000)+"\n")
		for range 700 {
			r.send(row)
		}
		r.send(packet('c', "")).until('Z')
		r.send(packet('Q', "select sum(length(x)) from taken\x00"))
		if got := r.until('D'); string(got.body[6:]) != "21000000" {
			t.Errorf("%q bytes were copied", got.body[6:])
		}
		r.until('Z')
		// And in the middle of everything it goes.
		r.send(packet('Q', endless+"\x00")).until('D')
		_ = under.SetLinger(0)
		_ = under.Close()
		p.await("its server connection is free, or gone", func(s Snapshot) bool {
			return s.Clients == 0 && s.BuffersLent == 0 && s.Pools[0].Stats.Idle == s.Servers
		})
	}
}

// Five hundred log in at once while a hundred say nothing, or stop in the middle of a handshake.
func TestSilentHandshakesHoldUpNobody(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, nil)
	hello := helloOf(t)
	for i := range 100 {
		r := p.raw(t)
		switch i % 4 {
		case 0: // nothing at all
		case 1:
			r.asked()
		case 2:
			r.asked()
			r.send(hello[:len(hello)-1])
		case 3:
			r.asked()
			r.send(hello)
		}
	}
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", p.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(patience))
			r := &raw{t, conn}
			c := tls.Client(conn, unverified())
			if err := c.Handshake(); err != nil {
				t.Error(err)
				return
			}
			r.conn = c
			r.login()
			r.send(packet('Q', "select 7\x00")).until('Z')
		})
	}
	wg.Wait()
	if s := p.state(); s.Counters.Logins != 500 {
		t.Errorf("%d logins", s.Counters.Logins)
	}
}

// Those that stop in the middle of a handshake take every place there is: they give way.
func TestSilentHandshakesGiveWay(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, nil)
	hello := helloOf(t)
	places := func() (taken, waiting, begun int) {
		done := make(chan struct{})
		p.loop.Post(func() {
			taken, waiting, begun = p.shakes.taken, len(p.shakes.waiting), len(p.shakes.begun)
			close(done)
		})
		<-done
		return taken, waiting, begun
	}
	patience := func(d time.Duration) {
		p.loop.Post(func() {
			p.shakes.patience = d
			p.loop.Unset(&p.shakes.evict)
			p.evictSilent()
		})
	}
	patience(time.Hour)
	var silent []*raw
	for range maxHandshakes + 50 {
		r := p.raw(t)
		silent = append(silent, r.send(hello))
	}
	p.await("all places are taken", func(Snapshot) bool {
		taken, waiting, begun := places()
		return taken == maxHandshakes && waiting == 50 && begun == maxHandshakes
	})
	// One that leaves the queue, and one that comes.
	_ = silent[len(silent)-1].conn.Close()
	p.await("one has left the queue", func(Snapshot) bool {
		_, waiting, _ := places()
		return waiting == 49
	})
	patience(10 * time.Millisecond)
	r := p.raw(t).inTLS(unverified()).login()
	r.send(packet('Q', "select 7\x00")).until('Z')
	p.await("the rest has had a place", func(Snapshot) bool {
		taken, waiting, begun := places()
		return waiting == 0 && taken == begun
	})
	for _, r := range silent {
		_ = r.conn.Close()
	}
	p.await("all places are free", func(s Snapshot) bool {
		taken, waiting, begun := places()
		return taken+waiting+begun == 0 && s.Clients == 1 && s.BuffersLent == 0
	})
}

// helloOf is what a client says first.
func helloOf(t *testing.T) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	go func() {
		_ = tls.Client(there, unverified()).Handshake()
		_ = there.Close()
	}()
	b := make([]byte, 4096)
	n, err := io.ReadAtLeast(here, b, recordHeader)
	if err != nil {
		t.Fatal(err)
	}
	size := recordHeader + int(b[3])<<8 + int(b[4])
	if _, err := io.ReadFull(here, b[n:max(n, size)]); err != nil {
		t.Fatal(err)
	}
	return b[:size]
}

func TestAHandshakeThatDoesNotEndTimesOut(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, func(set *Settings) { set.ClientLoginTimeout = 50 * time.Millisecond })
	hello := helloOf(t)
	for _, sent := range [][]byte{nil, hello[:20], hello} {
		r := p.raw(t)
		r.asked()
		r.send(sent)
		if b, err := io.ReadAll(r.conn); err != nil || bytes.Contains(b, []byte("FATAL")) {
			t.Errorf("after %d bytes: %q, %v", len(sent), b, err)
		}
	}
	p.quiet(t, 0)
}

// S75
func TestAReloadBringsOtherCertificates(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Encrypt(&tls.Config{Certificates: []tls.Certificate{ca.issue("localhost", nil).Certificate}})
		echo(c)
	})
	with := func(client, server *tls.Config) *Settings {
		set := fakeSettings(f, nil)
		set.ClientTLS, set.ServerTLS = NewClientTLS(TLSPrefer, client), NewServerTLS(TLSVerifyCA, server)
		return set
	}
	named := func(name string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.issue(name, nil).Certificate}}
	}
	trusting := &tls.Config{RootCAs: ca.pool()}
	p := startProxy(t, with(named("first"), trusting))
	ask := func(r *raw) { r.send(packet('Q', "select 7\x00")).until('Z') }
	login := func() (*raw, string) {
		r := p.raw(t).inTLS(unverified())
		name := r.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
		return r.login(), name
	}
	old, name := login()
	if name != "first" {
		t.Errorf("the certificate is of %q", name)
	}
	ask(old)
	// With clients alone: server connections stay.
	p.Reload(with(named("second"), trusting))
	r, name := login()
	if name != "second" {
		t.Errorf("after a reload the certificate is of %q", name)
	}
	ask(r)
	ask(old)
	if n := f.Accepted(); n != 1 {
		t.Errorf("%d server connections were opened", n)
	}
	// With servers: the old connections are not good any more, new ones are made by the new authorities.
	p.Reload(with(named("second"), &tls.Config{RootCAs: newAuthority(t).pool()}))
	r.send(packet('Q', "select 7\x00"))
	f.AwaitAccepted(t, 2)
	p.await("it does not trust the server", func(s Snapshot) bool { return s.Counters.DialFailures > 0 && s.Servers == 0 })
	p.Reload(with(named("second"), trusting))
	r.until('Z')
	ask(old)
}
