package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// Streams that do not end, peers that do not read, and clients that hang up at any byte.

// flooding serves like echo, but what starts with "flood" is answered by flood until that cannot go on. sent counts what
// the socket took.
func flooding(flood func(c *pgtest.FakeConn, sent *atomic.Int64), sent *atomic.Int64) func(*pgtest.FakeConn) {
	return func(c *pgtest.FakeConn) {
		c.Login()
		for {
			if sql := c.Query(); sql == "flood" {
				flood(c, sent)
			} else {
				c.Answer(sql)
			}
		}
	}
}

// S63
func TestEndlessAnswersStreamInBoundedMemory(t *testing.T) {
	chunk := make([]byte, 64<<10)
	for name, flood := range map[string]func(*pgtest.FakeConn, *atomic.Int64){
		"one row": func(c *pgtest.FakeConn, sent *atomic.Int64) {
			c.Frame('D', 1<<31-1, nil)
			for {
				c.Raw(chunk)
				sent.Add(int64(len(chunk)))
			}
		},
		"rows": func(c *pgtest.FakeConn, sent *atomic.Int64) {
			for {
				c.Raw(packet('D', "\x00\x01\x00\x00\x10\x00"+string(chunk[:4096])))
				sent.Add(4096)
			}
		},
		"notices": func(c *pgtest.FakeConn, sent *atomic.Int64) {
			for {
				c.Send(&pgproto3.NoticeResponse{Message: string(chunk[:100])})
				sent.Add(100)
			}
		},
		"parameters": func(c *pgtest.FakeConn, sent *atomic.Int64) {
			for i := 0; ; i++ {
				c.ParameterStatus(fmt.Sprint("name", i), strings.Repeat("x", 100))
				sent.Add(100)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			p, f := pooledFake(t, flooding(flood, &sent), nil)
			bystander := p.call()
			undisturbed(t, bystander)
			r := p.raw(t).login()
			before := heap()
			r.send(packet('Q', "flood\x00"))
			amount := int64(8 << 20)
			if name == "notices" || name == "parameters" {
				amount = 1 << 20
			}
			for got, looked := int64(0), int64(0); got < amount; {
				n, err := r.conn.Read(make([]byte, 256<<10))
				if err != nil {
					t.Fatal(err)
				}
				if got += int64(n); got-looked > amount/8 {
					looked = got
					undisturbed(t, bystander)
					if s := p.state(); s.BytesLent > 512<<10 {
						t.Fatalf("%d bytes are lent", s.BytesLent)
					}
				}
			}
			// Now it stops reading: so does the proxy, and the server has to wait.
			stalled(t, &sent)
			undisturbed(t, bystander)
			if s := p.state(); s.BytesLent > 512<<10 {
				t.Errorf("%d bytes are lent", s.BytesLent)
			}
			if grown := int64(heap()) - int64(before); grown > 8<<20 {
				t.Errorf("the heap has grown by %d KiB", grown>>10)
			}
			_ = r.conn.Close()
			p.await("it is gone", func(s Snapshot) bool { return s.Clients == 1 })
			undisturbed(t, bystander)
			f.Close()
		})
	}
}

// stalled waits until a counter stands still.
func stalled(t *testing.T, n *atomic.Int64) {
	t.Helper()
	deadline := time.After(patience)
	for last := n.Load(); ; {
		select {
		case <-deadline:
			t.Fatalf("still going on after %v, at %d", patience, n.Load())
		case <-time.After(100 * time.Millisecond):
		}
		now := n.Load()
		if now == last {
			return
		}
		last = now
	}
}

func TestAServerThatStopsReadingHoldsUpItsClientOnly(t *testing.T) {
	release := make(chan struct{})
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		for {
			sql := c.Query()
			if sql == "stop" {
				<-release
			}
			c.Answer(fmt.Sprint(sql[:min(len(sql), 10)], len(sql)))
		}
	}, func(_ *Settings, r *Route) { r.Pool.Size = 2 })
	bystander := p.raw(t).login()
	r := p.raw(t).login()
	_ = r.conn.SetDeadline(time.Now().Add(4 * patience))
	const size = 24 << 20
	r.send(packet('Q', "stop\x00"))
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.send(partial('Q', 4+size+1, ""))
		chunk := bytes.Repeat([]byte("x"), 64<<10)
		for range size / len(chunk) {
			r.send(chunk)
			sent.Add(int64(len(chunk)))
		}
		r.send([]byte{0})
	}()
	stalled(t, &sent)
	if n := sent.Load(); n == 0 || n >= size {
		t.Fatalf("%d of %d bytes were taken from the client while the server did not read", n, size)
	}
	if got := bystander.ask("select 7"); got != "select 78" {
		t.Errorf("the bystander got %q", got)
	}
	if s := p.state(); s.BytesLent > 512<<10 {
		t.Errorf("%d bytes are lent", s.BytesLent)
	}
	close(release)
	<-done
	r.until('Z')
	if m := r.until('D'); string(m.body[6:]) != fmt.Sprint("xxxxxxxxxx", size) {
		t.Errorf("the server got %s, want %d bytes", m.body[6:], size)
	}
	r.until('Z')
	_ = r.conn.Close()
	p.quiet(t, 1)
}

func TestOneClientsParametersAreNotToldToTheNext(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	a := p.call()
	a.must("drop role if exists reduced; create role reduced; set session authorization reduced")
	defer a.must("reset session authorization; drop role reduced")
	if a.params["is_superuser"] != "off" || a.params["session_authorization"] != "reduced" {
		t.Fatalf("the server did not report the change: %v", a.params)
	}
	if b := p.call(); b.params["is_superuser"] != "on" || b.params["session_authorization"] != pgtest.User {
		t.Errorf("a new client is told is_superuser %s, session_authorization %s", b.params["is_superuser"], b.params["session_authorization"])
	}
}

// S38, S85
func TestWhatAnIdleServerSays(t *testing.T) {
	var newest atomic.Pointer[chan []byte] // what the newest connection is to say; an older one may not have ended yet
	say := func(b []byte) { *newest.Load() <- b }
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		sayings := make(chan []byte)
		newest.Store(&sayings)
		sql := make(chan string)
		go func() {
			defer close(sql)
			defer func() { _ = recover() }() // the connection is gone
			for {
				sql <- c.Query()
			}
		}()
		for {
			select {
			case b := <-sayings:
				c.Raw(b)
			case q, ok := <-sql:
				if !ok {
					return
				}
				c.Answer(q)
			}
		}
	}, func(_ *Settings, r *Route) { r.Pool.Size = 1 })
	bystander := p.call()
	undisturbed(t, bystander)
	for name, c := range map[string]struct {
		bytes []byte
		fatal bool
	}{
		"a notice":            {packet('N', "SNOTICE\x00C00000\x00Mhello\x00\x00"), false},
		"a notification":      {packet('A', "\x00\x00\x00\x01channel\x00payload\x00"), false},
		"a parameter":         {packet('S', "in_hot_standby\x00on\x00"), false},
		"an error":            {packet('E', "SFATAL\x00C57P01\x00Mbye\x00\x00"), true},
		"ready":               {packet('Z', "I"), true},
		"a row":               {packet('D', "\x00\x00"), true},
		"garbage":             {[]byte("garbage"), true},
		"a negative length":   {partial('N', -1, ""), true},
		"half a notice":       {partial('N', 100, "SNOTICE\x00"), false},
		"a request to log in": {packet('R', "\x00\x00\x00\x03"), true},
	} {
		t.Run(name, func(t *testing.T) {
			undisturbed(t, bystander)
			n, violations := f.Accepted(), p.state().Counters.ServerViolations
			say(c.bytes)
			if c.fatal {
				p.await("it was noticed", func(s Snapshot) bool { return s.Counters.ServerViolations == violations+1 && s.Servers == 0 })
			} else if name == "half a notice" {
				say(fmt.Appendf(nil, "M%085d\x00\x00", 0)) // it comes to an end, and may reach the client that asks next
			}
			undisturbed(t, bystander)
			if more := f.Accepted() - n; (more > 0) != c.fatal {
				t.Errorf("%d new connections were made", more)
			}
		})
	}
}

// S38
func TestAMessageThatBeganBeforeItsClientCameIsNotToldToIt(t *testing.T) {
	goOn := make(chan struct{})
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		c.Answer(c.Query())
		<-goOn
		c.Raw(partial('N', 100, "SNOTICE\x00"))
		q := c.Query()
		<-goOn
		c.Raw(fmt.Appendf(nil, "M%085d\x00\x00", 0)) // its end, in a piece of its own
		c.Answer(q)
		c.Answer(c.Query())
	}, func(_ *Settings, r *Route) { r.Pool.Size = 1 })
	a := p.call()
	undisturbed(t, a)
	before := p.await("nobody has the connection", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 1 }).Pools[0].Counts.BytesSent
	goOn <- struct{}{}
	p.await("half a notice was read", func(s Snapshot) bool { return s.Pools[0].Counts.BytesSent == before+5+8 })
	received := p.state().Pools[0].Counts.BytesReceived
	a.send(&pgproto3.Query{String: "select 8"})
	p.await("the query is with the server", func(s Snapshot) bool { return s.Pools[0].Counts.BytesReceived > received })
	goOn <- struct{}{}
	if m := a.receive(); m == nil {
		t.Fatal("no answer")
	} else if _, ok := m.(*pgproto3.RowDescription); !ok {
		t.Errorf("the client got %T first", m)
	}
	a.reply()
	undisturbed(t, a)
}

func TestAServerThatNeverEndsItsConnectionIsLeft(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		c.Answer(c.Query())
		for { // it says farewell without end
			c.Send(&pgproto3.NoticeResponse{Message: "and another thing"})
		}
	}, func(s *Settings, r *Route) {
		s.ServerCloseTimeout = 100 * time.Millisecond
		r.Pool.ServerIdleTimeout = 50 * time.Millisecond
	})
	c := p.call()
	undisturbed(t, c)
	p.await("the connection is given up", func(s Snapshot) bool { return s.Servers == 0 && s.Pools[0].Stats.Closing == 0 })
}

// conversation is a whole session in pieces: what the client sends after it has heard the kind before.
type piece struct {
	after byte
	bytes []byte
}

// hangUpAt plays a conversation and closes after n bytes of what the client says. done tells that there were no more.
func hangUpAt(t *testing.T, p *pooler, talk []piece, n int, reset bool) (done bool) {
	t.Helper()
	r := p.raw(t)
	defer func() {
		if reset {
			_ = r.conn.(*net.TCPConn).SetLinger(0)
		}
		_ = r.conn.Close()
	}()
	for _, piece := range talk {
		switch piece.after {
		case 0:
		case 'N':
			r.reply()
		default:
			r.until(piece.after)
		}
		if len(piece.bytes) > n {
			r.send(piece.bytes[:n])
			return false
		}
		r.send(piece.bytes)
		n -= len(piece.bytes)
	}
	return true
}

func TestClientsThatHangUpAtAnyByteHurtNobodyElse(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 3 })
	set.Auth, set.Users = Plain, map[string]string{"app": "secret"}
	p := startProxy(t, set)
	bystander := p.raw(t).send(hello("user", "app"), packet('p', "secret\x00"))
	bystander.until('Z')

	if err := s.Exec(context.Background(), "drop table if exists hangups; create table hangups (x int)"); err != nil {
		t.Fatal(err)
	}
	login := []piece{{0, untyped(codeSSL, "")}, {'N', hello("user", "app", "application_name", "me")}, {'R', packet('p', "secret\x00")}}
	for name, rest := range map[string][]piece{
		"a query": {{'Z', packet('Q', "select 1\x00")}, {'Z', packet('X', "")}},
		"a batch in a transaction": {{'Z', packet('Q', "begin\x00")}, {'Z', bytes.Join([][]byte{
			packet('P', "\x00select $1::int\x00\x00\x00"), packet('B', "\x00\x00\x00\x00\x00\x01\x00\x00\x00\x017\x00\x00"),
			packet('D', "P\x00"), packet('E', "\x00\x00\x00\x00\x00"), packet('S', "")}, nil)}, {'Z', packet('X', "")}},
		"COPY": {{'Z', packet('Q', "begin; copy hangups from stdin\x00")},
			{'G', append(packet('d', "1\n2\n"), packet('c', "")...)}, {'Z', packet('Q', "rollback\x00")}},
	} {
		t.Run(name, func(t *testing.T) {
			talk := append(slices.Clone(login), rest...)
			var wg sync.WaitGroup
			const workers = 4
			for first := range workers {
				wg.Go(func() {
					for n := first; !hangUpAt(t, p, talk, n, n%3 == 0); n += workers {
					}
				})
			}
			wg.Wait()
			if got := bystander.ask("select 7"); got != "7" {
				t.Errorf("the bystander got %q", got)
			}
			p.quiet(t, 1)
			p.await("server connections are idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == s.Servers && s.Servers <= 3 })
			if got := bystander.ask("select count(*) from pg_stat_activity where state like 'idle in%'"); got != "0" {
				t.Errorf("%s server connections are idle in a transaction", got)
			}
			if got := bystander.ask("select count(*) from hangups"); got != "0" {
				t.Errorf("%s rows were left", got)
			}
		})
	}
}

func TestSCRAMClientsThatHangUpAtAnyByteHurtNobodyElse(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := plainProxy(t, ScramSHA256, nil)
	for n := 0; ; n++ {
		r := p.raw(t)
		left := n
		send := func(b []byte) bool {
			k := min(left, len(b))
			r.send(b[:k])
			left -= k
			return k == len(b)
		}
		c := scram.NewClient("secret", []byte("eighteen bytes long"))
		first := c.First()
		done := send(hello("user", "app")) && r.until('R').kind == 'R' &&
			send(packet('p', scram.Mechanism+"\x00\x00\x00\x00"+string(rune(len(first)))+string(first)))
		if done {
			final, err := c.Challenge(r.until('R').body[4:])
			if err != nil {
				t.Fatal(err)
			}
			if done = send(packet('p', string(final))); done {
				r.until('Z')
			}
		}
		_ = r.conn.Close()
		if done {
			break
		}
	}
	p.quiet(t, 0)
	if s := p.state(); s.Counters.Logins != 1 {
		t.Errorf("%d logins succeeded, want the whole one", s.Counters.Logins)
	}
}

func TestManyHostileClientsAtOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 3 })
	bystander := p.call()
	attacks := []func(r *raw){
		func(r *raw) { r.send([]byte(strings.Repeat("garbage", 1000))) },
		func(r *raw) { r.send(hello("user", "app")).send(packet('Q', "begin; select pg_sleep(0.01)\x00")) },
		func(r *raw) { r.send(hello("user", "app"), packet('Q', "select generate_series(1, 100000)\x00")) },
		func(r *raw) { r.send(hello("user", "app"), packet('z', "")) },
		func(r *raw) { r.send(hello("user", "app"), partial('Q', 1<<30, strings.Repeat("x", 100000))) },
		func(r *raw) { r.send(untyped(codeCancel, "12345678")) },
		func(r *raw) { r.send(hello("user", "app"), packet('P', "\x00select 1\x00\x00\x00")) },
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 2 * len(attacks) {
				r := p.raw(t)
				attacks[(i+j)%len(attacks)](r)
				if j%2 == 0 {
					_ = r.conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
					_, _ = io.Copy(io.Discard, r.conn)
				}
				_ = r.conn.Close()
			}
		})
	}
	for range 20 {
		undisturbed(t, bystander)
	}
	wg.Wait()
	p.quiet(t, 1)
	p.await("the pool is idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == s.Servers })
	undisturbed(t, bystander)
}

func TestEverythingMayComeInSingleBytes(t *testing.T) {
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Drip(time.Microsecond)
		c.Startup()
		c.Welcome()
		echoQueries(c)
	}, func(s *Settings, _ *Route) { s.Auth, s.Users = Plain, map[string]string{"app": "secret"} })
	r := p.raw(t).send(bytewise(untyped(codeSSL, ""))...)
	if b := r.reply(); b != 'N' {
		t.Fatalf("got %q", b)
	}
	r.send(bytewise(hello("user", "app", "application_name", "me"))...).until('R')
	r.send(bytewise(packet('p', "secret\x00"))...).until('Z')
	r.send(bytewise(packet('Q', "select 7\x00"))...)
	if m := r.until('D'); string(m.body[6:]) != "select 7" {
		t.Errorf("got %q", m.body)
	}
	r.until('Z')
	r.send(bytewise(packet('X', ""))...).dropped()
	p.quiet(t, 0)
}
