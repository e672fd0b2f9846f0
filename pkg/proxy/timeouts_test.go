package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// S41, S49, S51, S52, S53, M13
func TestAClientWhoseTimeIsOverEndsWithPostgresCode(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "overdue")
	for name, c := range map[string]struct {
		timeouts Timeouts
		say      []string // answered, but for the last
		code     string
		text     string
	}{
		"a query":                 {Timeouts{Query: 200 * time.Millisecond}, []string{"insert into overdue values (1)", "begin; insert into overdue values (2); select pg_sleep(60)"}, "57014", "query_timeout"},
		"a transaction":           {Timeouts{Transaction: 200 * time.Millisecond}, []string{"begin; insert into overdue values (3)", "select pg_sleep(60)"}, "25P04", "transaction_timeout"},
		"an idle transaction":     {Timeouts{IdleTransaction: 200 * time.Millisecond}, []string{"begin; insert into overdue values (4)", ""}, "25P03", "idle_transaction_timeout"},
		"an idle, failed one":     {Timeouts{IdleTransaction: 200 * time.Millisecond}, []string{"begin; select 1/0", ""}, "25P03", "idle_transaction_timeout"},
		"an idle client":          {Timeouts{Idle: 200 * time.Millisecond}, []string{"select 1", ""}, "57P05", "client_idle_timeout"},
		"an idle client at first": {Timeouts{Idle: 200 * time.Millisecond}, []string{""}, "57P05", "client_idle_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Timeouts = 1, c.timeouts })
			r := p.raw(t).login()
			for i, sql := range c.say {
				if sql != "" {
					r.send(packet('Q', sql+"\x00"))
				}
				for i < len(c.say)-1 {
					if m, err := r.hear(); err != nil {
						t.Fatal(err)
					} else if m.kind == 'Z' {
						break
					}
				}
			}
			_, errs := r.ending()
			if len(errs) != 1 || errs[0].Code != c.code || errs[0].Severity != "FATAL" || !strings.Contains(errs[0].Message, c.text) {
				t.Fatalf("got %+v, want FATAL %s about %s", errs, c.code, c.text)
			}
			// What it left is rolled back, and its server connection serves the next, who has none of its time used up.
			next := p.call()
			if got := next.ask("select count(*) from overdue where x > 1").value(0); got != "0" {
				t.Errorf("%s rows of a transaction that was ended are there", got)
			}
			if n := p.state().Counters; n.Timeouts != 1 || n.Dials != 1 {
				t.Errorf("%d timeouts and %d dials, want one of each", n.Timeouts, n.Dials)
			}
		})
	}
}

// S55
func TestAWaiterIsToldOnceThatItQueues(t *testing.T) {
	s := fakeSettings(pgtest.NewFake(t, echo), func(_ *Settings, r *Route) { r.Pool.Size = 1 })
	s.QueryWaitNotify = 50 * time.Millisecond
	p := startProxy(t, s)
	holder, waiter := p.raw(t).login(), p.raw(t).login()
	holder.ask("begin")
	waiter.send(packet('Q', "select 7\x00"))
	if m := waiter.until('N'); !strings.Contains(string(m.body), "client being queued") {
		t.Errorf("the notice says %q", m.body)
	}
	p.await("it waits on", func(s Snapshot) bool { return s.Pools[0].OldestWait > 4*sweepMost })
	holder.ask("commit")
	for {
		m, err := waiter.hear()
		if err != nil || m.kind == 'N' {
			t.Fatalf("got %q, %v after the first notice", m.kind, err)
		}
		if m.kind == 'Z' {
			break
		}
	}
}

// A server that ignores the cancel request does not keep its slot.
//
// S53
func TestAServerThatIgnoresACancelIsClosedWhenItsClientsTimeIsOver(t *testing.T) {
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		for c.Query() != "stall" {
			c.Complete("SELECT 1")
			c.Ready('I')
		}
		c.Query() // never comes
	})
	s := fakeSettings(f, func(_ *Settings, r *Route) { r.Pool.Size, r.Timeouts = 1, Timeouts{Query: 100 * time.Millisecond} })
	s.CancelWaitTimeout, s.ServerCloseTimeout = 100*time.Millisecond, 100*time.Millisecond
	p := startProxy(t, s)
	r := p.raw(t).login()
	r.send(packet('Q', "stall\x00"))
	if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "57014" {
		t.Errorf("got %+v", errs)
	}
	p.await("the server connection is closed", func(s Snapshot) bool {
		n := s.Pools[0].Stats
		return n.Active+n.Testing+n.Idle+n.Closing == 0
	})
	p.raw(t).login().ask("select 7")
}

// S49
func TestChangedTimeoutsHoldForClientsThatAreThere(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	with := func(timeouts Timeouts) *Settings {
		return fakeSettings(f, func(_ *Settings, r *Route) { r.Timeouts, r.Pool.Mode = timeouts, pool.Transaction })
	}
	p := startProxy(t, with(Timeouts{}))
	r := p.raw(t).login()
	r.ask("select 7")
	p.reloaded(t, with(Timeouts{Idle: 50 * time.Millisecond}))
	if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "57P05" {
		t.Errorf("got %+v", errs)
	}
}

// S52
func TestNobodyHoldsAServerConnectionBeyondItsTime(t *testing.T) {
	half := parsePacket("s", strings.Repeat("x", 30_000))
	for name, hold := range map[string][]byte{
		"who has said goodbye":  append(packet('Q', "select pg_sleep(60)\x00"), packet('X', "")...),
		"who sends half a text": half[:holdSize+1000],
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Timeouts = 1, Timeouts{Query: 300 * time.Millisecond} })
			r := p.raw(t).login().send(hold)
			p.await("it holds the server connection", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 1 })
			if got := p.raw(t).login().ask("select 7"); got != "7" {
				t.Errorf("the next client got %q", got)
			}
			if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "57014" {
				t.Errorf("it got %+v", errs)
			}
		})
	}
}
