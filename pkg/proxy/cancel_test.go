package proxy

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// sleeping has c run a query that only a cancel ends.
func sleeping(c *caller, s *pgtest.Server) (pid string) {
	c.t.Helper()
	pid = c.must("begin; select pg_backend_pid()")
	c.send(&pgproto3.Query{String: "select pg_sleep(600)"})
	awaitTrue(c.t, s, "select wait_event = 'PgSleep' from pg_stat_activity where pid = "+pid)
	return pid
}

// cancelled reads the answer to a query and insists that it was cancelled.
func cancelled(c *caller) {
	c.t.Helper()
	if r := c.reply(); r.err == nil || r.err.Code != "57014" {
		c.t.Fatalf("the query was answered by %+v, want 57014", r)
	}
}

// S29
func TestACancelRequestHitsTheQueryOfItsClient(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 3 })
	a, b := p.call(), p.call()
	sleeping(a, s)
	other := sleeping(b, s)
	if err := a.cancel(); err != nil {
		t.Fatal(err)
	}
	cancelled(a)
	awaitTrue(t, s, "select wait_event = 'PgSleep' from pg_stat_activity where pid = "+other)
	a.must("rollback")
	if err := b.cancel(); err != nil {
		t.Fatal(err)
	}
	cancelled(b)
}

// M24
func TestACancelRequestOfProtocol32HitsTheQueryOfItsClient(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	a := p.call(protocol32)
	if len(a.key) != 16 {
		t.Fatalf("the key has %d bytes", len(a.key))
	}
	sleeping(a, s)
	for name, wrong := range map[string][]byte{"the first four bytes": a.key[:4], "a byte less": a.key[:15], "another last byte": append(slices.Clone(a.key[:15]), a.key[15]+1)} {
		if err := requestCancel(a.addr, a.pid, wrong); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := p.state().Counters.Cancels; n != 0 {
		t.Errorf("%d cancel requests were sent for wrong keys", n)
	}
	if err := a.cancel(); err != nil {
		t.Fatal(err)
	}
	cancelled(a)
}

// S28
func TestACancelRequestThatConcernsNobodyIsDropped(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 2 })
	busy, gone, idle := p.call(), p.call(), p.call()
	pid := sleeping(busy, s)
	departures["by Terminate"](gone)
	p.await("it is gone", func(s Snapshot) bool { return s.Clients == 2 })
	idle.must("select 1")
	for name, c := range map[string]*caller{"a client that is gone": gone, "a client without a query": idle} {
		if err := c.cancel(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := p.state().Counters.Cancels; n != 0 {
		t.Errorf("%d cancel requests went to the server", n)
	}
	awaitTrue(t, s, "select wait_event = 'PgSleep' from pg_stat_activity where pid = "+pid)
	idle.must("select 2")
}

// S28
func TestACancelRequestOfAWaitingClientHitsNobody(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	holder, waiter := p.call(), p.call()
	pid := sleeping(holder, s)
	waiter.send(&pgproto3.Query{String: "select 'served'"})
	p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	if err := waiter.cancel(); err != nil {
		t.Fatal(err)
	}
	awaitTrue(t, s, "select wait_event = 'PgSleep' from pg_stat_activity where pid = "+pid)
	if err := holder.cancel(); err != nil {
		t.Fatal(err)
	}
	cancelled(holder)
	holder.must("rollback")
	if r := waiter.reply(); r.err != nil || r.value(0) != "served" {
		t.Errorf("the waiting client was answered by %+v", r)
	}
}

// The race that matters: the query has just ended, the server connection is already promised to somebody else, and the
// request to cancel arrives.
//
// S30, M16
func TestALateCancelRequestNeverHitsAnotherClient(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	const rounds = 60
	a := p.call()
	over := make(chan struct{})
	var ended sync.WaitGroup
	var served atomic.Int64
	for range 2 {
		bystander := p.call()
		ended.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if r := bystander.ask("select pg_sleep(0.0002)"); r.err != nil || r.status != 'I' {
					t.Errorf("a bystander was answered by %+v", r.err)
					return
				}
				served.Add(1)
			}
		})
	}
	hit := 0
	for round := range rounds {
		answered := make(chan struct{})
		var cancels sync.WaitGroup
		for range 2 {
			cancels.Go(func() {
				for {
					if err := a.cancel(); err != nil {
						t.Error(err)
						return
					}
					select {
					case <-answered:
						return
					default:
					}
				}
			})
		}
		r := a.ask(fmt.Sprintf("select pg_sleep(%g)", 0.001*float64(round%15)))
		close(answered)
		cancels.Wait()
		if r.status != 'I' || (r.err != nil && r.err.Code != "57014") {
			t.Fatalf("the client was answered by %+v", r)
		}
		if r.err != nil {
			hit++
		}
	}
	close(over)
	ended.Wait()
	t.Logf("%d of %d queries were cancelled by %d requests, bystanders were served %d times", hit, rounds, p.state().Counters.Cancels, served.Load())
	if hit == 0 || hit == rounds || served.Load() < rounds {
		t.Error("there was no race")
	}
}

// slowToCancel serves a fake server: the first connection answers queries by themselves, except "busy", which it answers
// when it is told to; further ones take a cancel request and close when they are told to.
func slowToCancel(finish, arrive <-chan struct{}) func(*pgtest.FakeConn) {
	return func(c *pgtest.FakeConn) {
		m, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			return
		}
		if _, ok := m.(*pgproto3.CancelRequest); ok {
			<-arrive
			return
		}
		c.Welcome()
		for {
			sql := c.Query()
			if sql == "busy" {
				<-finish
			}
			c.Answer(sql)
		}
	}
}

// S9, S30
func TestAServerConnectionWaitsForTheCancelRequestsUnderWay(t *testing.T) {
	finish, arrive := make(chan struct{}), make(chan struct{})
	f := pgtest.NewFake(t, slowToCancel(finish, arrive))
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
	a, next := p.call(), p.call()
	a.send(&pgproto3.Query{String: "busy"})
	p.await("it is busy", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 1 })
	next.send(&pgproto3.Query{String: "next"})
	p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	asked := make(chan error)
	go func() { asked <- a.cancel() }()
	f.AwaitOpen(t, 2)
	finish <- struct{}{}
	if r := a.reply(); r.err != nil {
		t.Fatalf("the client was answered by %+v", r.err)
	}
	if s := p.state(); s.Pools[0].Stats.Waiting != 1 {
		t.Fatal("the server connection went to another client while a cancel request was under way")
	}
	arrive <- struct{}{}
	if r := next.reply(); r.err != nil || r.value(0) != "next" {
		t.Errorf("the next client was answered by %+v", r)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
	if n := f.Accepted(); n != 2 {
		t.Errorf("%d connections were made, want 2", n)
	}
}

// S31
func TestAServerConnectionWithACancelRequestInDoubtServesNobodyElse(t *testing.T) {
	finish, arrive := make(chan struct{}), make(chan struct{})
	f := pgtest.NewFake(t, slowToCancel(finish, arrive))
	set := testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 })
	set.CancelWaitTimeout = 50 * time.Millisecond
	p := startProxy(t, set)
	for _, leaves := range []bool{false, true} {
		before := f.Accepted()
		a, next := p.call(), p.call()
		a.send(&pgproto3.Query{String: "busy"})
		p.await("it is busy", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 1 })
		next.send(&pgproto3.Query{String: "next"})
		if err := a.cancel(); err != nil {
			t.Fatal(err)
		}
		if leaves {
			departures["by FIN"](a)
		}
		finish <- struct{}{}
		if r := next.reply(); r.err != nil || r.value(0) != "next" {
			t.Errorf("the next client was answered by %+v", r)
		}
		want := before + 2 // the request's and a new server connection
		if before == 0 {
			want++
		}
		// When the client's own request has timed out before its answer cannot be written, the pooler cancels once more.
		if n := f.Accepted(); n != want && (!leaves || n != want+1) {
			t.Errorf("%d connections were made, want %d", n, want)
		}
	}
	close(arrive)
}

// S29, S81
func TestManyCancelRequestsAreBounded(t *testing.T) {
	finish, arrive := make(chan struct{}), make(chan struct{})
	f := pgtest.NewFake(t, slowToCancel(finish, arrive))
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
	a := p.call()
	a.send(&pgproto3.Query{String: "busy"})
	p.await("it is busy", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 1 })
	const many = 3 * maxCancels
	answered := make(chan error, many)
	for range many {
		go func() { answered <- a.cancel() }()
	}
	for range many - maxCancels { // those for which there is no room are closed at once
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	f.AwaitOpen(t, 1+maxCancels)
	close(arrive)
	for range maxCancels {
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	finish <- struct{}{}
	if r := a.reply(); r.err != nil {
		t.Errorf("the client was answered by %+v", r.err)
	}
	if n := f.Accepted(); n != 1+maxCancels {
		t.Errorf("%d connections were made, want %d", n, 1+maxCancels)
	}
	p.await("nothing is left of the requests", func(s Snapshot) bool { return s.Clients == 1 })
}

// S31
func TestACancelRequestWhileTheServerIsAwayIsDropped(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	p := startProxy(t, testSettings(s.Host, s.Port, nil))
	a := p.call()
	sleeping(a, s)
	s.Kill9()
	if err := a.cancel(); err != nil {
		t.Fatal(err)
	}
	a.fatal()
	if err := a.cancel(); err != nil {
		t.Fatal(err)
	}
	p.await("nothing is left", func(s Snapshot) bool { return s.Clients == 0 && s.Servers == 0 })
}
