package proxy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// What a passthrough password on trial may take from those who have proved theirs: nothing.

func TestATrialLeavesAPermitToThoseWhoHaveProvedTheirs(t *testing.T) {
	t.Parallel()
	t.Run("the only one", func(t *testing.T) {
		p, v, _ := behindVault(t, func(s *Settings) { s.ClientLoginTimeout = 500 * time.Millisecond }, func(r *Route) { r.Pool.Size = 1 })
		a := p.admitted(t, "app", "right")
		a.ask("begin")
		if _, why := p.try(t, "app", "wrong"); why != "08P01 client_login_timeout (server down)" {
			t.Errorf("got %q", why)
		}
		if n := v.tried("wrong"); n != 0 {
			t.Error("it was tried although a client holds the only permit")
		}
		a.ask("commit")
		undoubted(t, a)
	})
	t.Run("the only one, which is idle", func(t *testing.T) {
		p, v, _ := behindVault(t, func(s *Settings) { s.ClientLoginTimeout = 500 * time.Millisecond }, func(r *Route) { r.Pool.Size = 1 })
		a := p.admitted(t, "app", "right")
		if _, why := p.try(t, "app", "wrong"); why != "08P01 client_login_timeout (server down)" {
			t.Errorf("got %q", why)
		}
		undoubted(t, a)
		if s := p.state(); s.Pools[0].Stats.Opened != 1 || v.tried("wrong") != 0 {
			t.Error("the only server connection was closed for it")
		}
	})
	t.Run("one of two", func(t *testing.T) {
		p, v, _ := behindVault(t, nil, func(r *Route) { r.Pool.Size = 2 })
		v.hold = make(chan struct{})
		a := p.admitted(t, "app", "right")
		done := make(chan struct{})
		go func() { defer close(done); p.denied(t, "app", "wrong") }()
		p.await("the wrong one is being tried", func(Snapshot) bool { return v.tried("wrong") == 1 })
		b := p.admitted(t, "app", "right")
		undoubted(t, a) // while the server takes its time over the other
		undoubted(t, b)
		close(v.hold)
		<-done
	})
	t.Run("of a full pool that is idle", func(t *testing.T) {
		p, v, _ := behindVault(t, nil, func(r *Route) { r.Pool.Size = 2 })
		a, b := p.admitted(t, "app", "right"), p.admitted(t, "app", "right")
		a.ask("begin")
		b.ask("begin")
		a.ask("commit")
		b.ask("commit")
		p.await("both are idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 2 })
		v.change("new")
		p.admitted(t, "app", "new") // an idle one makes room
	})
	t.Run("of the whole server", func(t *testing.T) {
		p, v, f := behindVault(t, nil, nil)
		p.SetCapacity(fmt.Sprintf("127.0.0.1:%d", f.Port()), 1, 0)
		a := p.admitted(t, "app", "right")
		a.ask("begin")
		other := make(chan struct{})
		go func() { defer close(other); p.denied(t, "other", "wrong") }()
		p.await("another user waits", func(s Snapshot) bool { return len(s.Pools) == 2 && s.Pools[1].Stats.Waiting == 1 })
		if n := v.tried("wrong"); n != 0 {
			t.Error("it was tried beyond the server's capacity")
		}
		a.ask("commit")
		<-other
		undoubted(t, a)
	})
}

func undoubted(t *testing.T, r *raw) {
	t.Helper()
	if got := r.ask("select 7"); got != "select 7" {
		t.Fatalf("a client that has proved its password got %q", got)
	}
}

func TestAWrongPasswordDoesNotFailThoseWhoWait(t *testing.T) {
	t.Parallel()
	p, v, _ := behindVault(t, nil, func(r *Route) { r.Pool.Size = 2; r.Pool.ServerIdleTimeout = 20 * time.Millisecond })
	a := p.admitted(t, "app", "right")
	p.await("no server connection is left", func(s Snapshot) bool { return s.Servers == 0 })
	p.SetCapacity(p.state().Pools[0].Settings.Server, 1, 0)
	v.hold = make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(done); p.denied(t, "app", "wrong") }()
	p.await("the wrong one is being tried", func(Snapshot) bool { return v.tried("wrong") == 1 })
	a.send(packet('Q', "select 7\x00"))
	p.await("the other one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	close(v.hold)
	<-done
	if m := a.until('D'); string(m.body[6:]) != "select 7" {
		t.Errorf("got %q", m.body)
	}
	a.until('Z')
}

func TestMadeUpUsersLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	p, _, _ := behindVault(t, nil, nil)
	a := p.admitted(t, "app", "right")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { p.denied(t, fmt.Sprint("user", i), "wrong") })
	}
	wg.Wait()
	p.await("only one pool is left", func(s Snapshot) bool { return len(s.Pools) == 1 })
	p.await("only one role is remembered", func(Snapshot) bool {
		n := make(chan int, 1)
		p.loop.Post(func() { n <- len(p.creds) })
		return <-n == 1
	})
	undoubted(t, a)
}

func TestAClientThatLeavesDuringItsTrialLeavesTheTurnToTheNext(t *testing.T) {
	t.Parallel()
	leave := func(t *testing.T, p *pooler, awaits func(Snapshot) bool) {
		t.Helper()
		r := p.raw(t).send(hello("user", "app", "database", "app"), packet('p', "wrong\x00"))
		p.await("its password is on trial", awaits)
		_ = r.conn.Close()
		p.await("it is gone", func(s Snapshot) bool { return s.Clients == 0 })
	}
	t.Run("while the server thinks about it", func(t *testing.T) {
		p, v, _ := behindVault(t, nil, nil)
		v.hold = make(chan struct{})
		leave(t, p, func(Snapshot) bool { return v.tried("wrong") == 1 })
		close(v.hold)
		p.admitted(t, "app", "right")
	})
	t.Run("while it waits for a server that is away", func(t *testing.T) {
		var open atomic.Bool
		v := &vault{password: "right"}
		f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
			if !open.Load() {
				c.Startup()
				c.Error("FATAL", "57P03", "starting up")
				return
			}
			v.serve(c)
		})
		p := startProxy(t, passthroughSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.LoginRetry = 100 * time.Millisecond }))
		leave(t, p, func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Waiting == 1 })
		p.await("no attempt with its password is under way", func(s Snapshot) bool { return s.Counters.Dials == s.Counters.DialFailures })
		open.Store(true)
		p.admitted(t, "app", "right")
		if n := v.tried("wrong"); n != 0 {
			t.Errorf("the password of one who has left was tried %d times", n)
		}
	})
}

func TestAConnectionThatAnotherSecretOpenedProvesNoPassword(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	var first atomic.Bool
	var wrong atomic.Int32
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Startup()
		switch password := c.AskPassword(); {
		case password == "right":
			if !first.CompareAndSwap(false, true) {
				<-hold // a login that takes its time
			}
			c.Welcome()
			echoQueries(c)
		case wrong.Add(1) == 1:
			c.Error("FATAL", "57P03", "not now")
		default:
			c.Error("FATAL", "28P01", "no")
		}
	}, func(s *Settings, r *Route) {
		s.Auth, s.PassthroughTTL = Passthrough, 50*time.Millisecond
		passing(r, "app")
		r.Pool.ServerIdleTimeout = 20 * time.Millisecond
	})
	a := p.admitted(t, "app", "right")
	p.await("its server connection is gone", func(s Snapshot) bool { return s.Servers == 0 })
	a.send(packet('Q', "select 7\x00"))
	f.AwaitAccepted(t, 2) // held
	_ = a.conn.Close()
	p.await("the password is forgotten", func(Snapshot) bool { cr, known := p.remembered(t, "app"); return !known || !cr.proven })
	b := p.raw(t).send(hello("user", "app", "database", "app"), packet('p', "wrong\x00"))
	p.await("the wrong one waits in the queue", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	close(hold)
	b.refusedAfter("R", "28P01", `password authentication failed for user "app"`)
}
