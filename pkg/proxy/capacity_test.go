package proxy

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// Time that is never reached, and time that passes at once.
const (
	never = time.Hour
	soon  = 100 * time.Millisecond
)

// counted is a database whose connections are watched.
type counted struct {
	*pgtest.Server
	t        *testing.T
	database string
	most     atomic.Int64 // connections at once, since it was last set
}

var countedDatabases atomic.Int64

// watched makes a database and a goroutine that counts its connections all the time.
func watched(t *testing.T) *counted {
	t.Helper()
	c := &counted{Server: pgtest.Shared(t), t: t, database: fmt.Sprint("counted", countedDatabases.Add(1))}
	if err := c.Exec(t.Context(), "create database "+c.database); err != nil {
		t.Fatal(err)
	}
	observer := callAt(t, c.Addr(), "database", pgtest.Database)
	over := make(chan struct{})
	var ended sync.WaitGroup
	ticks := time.NewTicker(2 * time.Millisecond) // leaves the server time for others
	ended.Go(func() {
		defer ticks.Stop()
		for {
			select {
			case <-over:
				return
			case <-ticks.C:
			}
			r := observer.ask("select count(*) from pg_stat_activity where datname = '" + c.database + "'")
			if n, _ := strconv.ParseInt(r.value(0), 10, 64); n > c.most.Load() {
				c.most.Store(n)
			}
		}
	})
	t.Cleanup(func() { close(over); ended.Wait() })
	return c
}

// proxy starts one before the counted database.
func (c *counted) proxy(edit func(*Route)) *pooler {
	return startProxy(c.t, testSettings(c.Host, c.Port, func(r *Route) {
		r.DBName = c.database
		if edit != nil {
			edit(r)
		}
	}))
}

func (c *counted) name() string { return fmt.Sprintf("%s:%d", c.Host, c.Port) }

// awaitConnections waits until exactly n are open, as the server sees it.
func (c *counted) awaitConnections(n int) {
	c.t.Helper()
	awaitTrue(c.t, c.Server, fmt.Sprintf("select count(*) = %d from pg_stat_activity where datname = '%s'", n, c.database))
}

// transactions opens n of them at once and returns their clients.
func (p *pooler) transactions(n int) []*caller {
	p.t.Helper()
	clients := make([]*caller, n)
	for i := range clients {
		clients[i] = p.call()
		clients[i].must("begin")
	}
	return clients
}

// terminated insists that the client was told of an administrator's command, and nothing else.
func terminated(c *caller) {
	c.t.Helper()
	if e := c.fatal(); e.Severity != "FATAL" || e.Code != "57P01" {
		c.t.Errorf("the client was told %s %s: %s, want FATAL 57P01", e.Severity, e.Code, e.Message)
	}
}

// S84
func TestShrinkingClosesIdleConnectionsFirstAndBusyOnesWhenTheirTransactionEnds(t *testing.T) {
	s := watched(t)
	p := s.proxy(func(r *Route) { r.Pool.Size = 8 })
	clients := p.transactions(8)
	for _, c := range clients[:3] {
		c.must("commit")
	}
	s.awaitConnections(8)
	p.SetCapacity(s.name(), 6, never)
	s.awaitConnections(6)
	p.SetCapacity(s.name(), 2, never)
	s.awaitConnections(5) // nothing else is idle
	for i, c := range clients[3:6] {
		c.must("select 1")
		c.must("commit")
		s.awaitConnections(4 - i)
	}
	for _, c := range clients[6:] {
		c.must("commit")
	}
	for _, c := range clients {
		c.must("select 1") // nobody was disturbed
	}
	s.awaitConnections(2)
	if st := p.state(); st.Clients != 8 || st.Servers != 2 {
		t.Errorf("there are %d clients and %d server connections, want 8 and 2", st.Clients, st.Servers)
	}
}

func TestAtTheDeadlineQueriesAreCancelledAndTheSlotsAreFree(t *testing.T) {
	s := watched(t)
	p := s.proxy(nil)
	idle, failed, copying, waiting := p.call(), p.call(), p.call(), p.call()
	idle.must("begin")
	failed.ask("begin; select 1/0")
	copying.must("create table target (x int)")
	copying.must("begin")
	copying.send(&pgproto3.Query{String: "copy target from stdin"})
	until[*pgproto3.CopyInResponse](copying)
	asleep := p.call()
	sleeping(asleep, s.Server)
	reading := p.call() // a result that nobody reads
	reading.send(&pgproto3.Query{String: endless})
	until[*pgproto3.DataRow](reading)
	waiting.send(&pgproto3.Query{String: "select 'at last'"})
	p.await("all are busy and one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 5 && s.Pools[0].Stats.Waiting == 1 })
	p.SetCapacity(s.name(), 0, soon)
	for _, c := range []*caller{idle, failed, copying, asleep} {
		terminated(c)
	}
	s.awaitConnections(0)
	// It reads on and finds the end, with the reason if it was not in the middle of a row.
	for reading.receive() != nil {
	}
	p.await("nothing is left but who waits", func(s Snapshot) bool { return s.Servers == 0 && s.Clients == 1 })
	s.most.Store(0)
	p.SetCapacity(s.name(), 1, never)
	if r := waiting.reply(); r.err != nil || r.value(0) != "at last" {
		t.Errorf("the waiting client was answered by %+v", r)
	}
	if most := s.most.Load(); most > 1 {
		t.Errorf("%d server connections were open at once, 1 was allowed", most)
	}
}

func TestGrowingServesWaitersAtOnce(t *testing.T) {
	s := watched(t)
	p := s.proxy(func(r *Route) { r.Pool.Size = 10 })
	p.call()
	p.SetCapacity(s.name(), 0, soon)
	s.awaitConnections(0)
	var clients []*caller
	for range 6 {
		c := p.call()
		c.send(&pgproto3.Query{String: "begin"})
		clients = append(clients, c)
	}
	p.await("all wait", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 6 })
	for n := 2; n <= 6; n += 2 {
		s.most.Store(0)
		p.SetCapacity(s.name(), n, never)
		for _, c := range clients[n-2 : n] { // the oldest first
			if r := c.reply(); r.err != nil || r.status != 'T' {
				t.Fatalf("a waiting client was answered by %+v", r)
			}
		}
		s.awaitConnections(n)
		if st := p.state().Pools[0].Stats; st.Waiting != 6-n {
			t.Errorf("with a capacity of %d %d clients wait, want %d", n, st.Waiting, 6-n)
		}
		if most := s.most.Load(); most > int64(n) {
			t.Errorf("%d server connections were open at once, %d were allowed", most, n)
		}
	}
}

func TestAnIdleConnectionOfAnotherPoolGivesWay(t *testing.T) {
	s := watched(t)
	const pools, allowed = 5, 2
	for i := range pools {
		if err := s.Exec(t.Context(), fmt.Sprintf("drop role if exists r%d; create role r%d login superuser", i, i)); err != nil {
			t.Fatal(err)
		}
	}
	for name, limit := range map[string]func(*Route, string, string){
		"capacity":             func(r *Route, database, user string) { r.Database, r.User = database, user },
		"max_db_connections":   func(r *Route, _, user string) { r.User, r.MaxDatabaseBackends = user, allowed },
		"max_user_connections": func(r *Route, database, _ string) { r.Database, r.MaxUserBackends = database, allowed },
	} {
		t.Run(name, func(t *testing.T) {
			s.awaitConnections(0)
			s.most.Store(0)
			set := testSettings(s.Host, s.Port, nil)
			set.Route = func(database, user string) (Route, bool) {
				r, _ := testRoute(s.Host, s.Port, nil)("shared", user)
				r.DBName = s.database
				limit(&r, database, user)
				return r, true
			}
			p := startProxy(t, set)
			if name == "capacity" {
				p.SetCapacity(s.name(), allowed, 0)
			}
			clients := make([]*caller, pools)
			for i := range clients {
				clients[i] = callAt(t, p.Addr, "database", fmt.Sprintf("d%d", i), "user", fmt.Sprintf("r%d", i))
			}
			for _, c := range clients {
				c.must("select 1")
			}
			if n := len(p.state().Pools); n != pools {
				t.Fatalf("there are %d pools, want %d", n, pools)
			}
			// Busy ones do not give way, and the waiters of all pools are served when they end.
			clients[0].must("begin")
			clients[1].must("begin")
			for _, c := range clients[2:] {
				c.send(&pgproto3.Query{String: "select 'served'"})
			}
			p.await("three wait", func(s Snapshot) bool {
				waiting := 0
				for _, pl := range s.Pools {
					waiting += pl.Stats.Waiting
				}
				return waiting == pools-2
			})
			clients[0].must("commit")
			for _, c := range clients[2:] {
				if r := c.reply(); r.err != nil || r.value(0) != "served" {
					t.Errorf("a waiting client was answered by %+v", r)
				}
			}
			clients[1].must("commit")
			if most := s.most.Load(); most > allowed {
				t.Errorf("%d server connections were open at once, %d were allowed", most, allowed)
			}
		})
	}
}

func TestSessionsAreEndedLast(t *testing.T) {
	s := watched(t)
	set := testSettings(s.Host, s.Port, nil)
	set.Route = func(database, user string) (Route, bool) {
		r, _ := testRoute(s.Host, s.Port, nil)(database, user)
		r.DBName = s.database
		if database == "sessions" {
			r.Pool.Mode, r.ResetQuery, r.Pool.Reset = pool.Session, "DISCARD ALL", true
		}
		return r, true
	}
	p := startProxy(t, set)
	session := callAt(t, p.Addr, "database", "sessions")
	session.must("create temp table mine (x int)")
	transaction := p.call()
	transaction.must("begin")
	p.SetCapacity(s.name(), 1, soon)
	terminated(transaction)
	s.awaitConnections(1)
	session.must("select * from mine")
	p.SetCapacity(s.name(), 0, soon)
	terminated(session)
	s.awaitConnections(0)
}

// Everything at once: two pools under load, a capacity that changes all the time, and a server that counts.
//
// S80
func TestTheServerNeverSeesMoreConnectionsThanTheCapacity(t *testing.T) {
	s := watched(t)
	set := testSettings(s.Host, s.Port, nil)
	set.Route = func(database, user string) (Route, bool) {
		r, _ := testRoute(s.Host, s.Port, nil)(database, user)
		r.DBName, r.Pool.Size, r.Pool.MaxConnecting = s.database, 6, 3
		return r, true
	}
	p := startProxy(t, set)
	over := make(chan struct{})
	var ended sync.WaitGroup
	var done, killed atomic.Int64
	for i := range 16 {
		ended.Go(func() {
			var c *caller
			for {
				select {
				case <-over:
					return
				default:
				}
				if c == nil {
					var err error
					if c, err = tryCall(t, p.Addr, "database", fmt.Sprintf("db%d", i%2)); err != nil {
						t.Error(err)
						return
					}
				}
				r := c.ask("begin; select pg_sleep(0.005)")
				if r.err == nil && r.status == 'T' {
					r = c.ask("commit")
				}
				switch {
				case r.err == nil && r.status == 'I':
					done.Add(1)
				case r.err != nil && r.err.Code == "57P01":
					killed.Add(1)
					_ = c.conn.Close()
					c = nil
				default:
					t.Errorf("a client was answered by %+v", r)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 25 {
		n := rng.IntN(7)
		deadline := time.Duration(rng.IntN(20)) * time.Millisecond
		p.SetCapacity(s.name(), n, deadline)
		p.await(fmt.Sprintf("no more than %d server connections", n), func(s Snapshot) bool {
			open := 0
			for _, pl := range s.Pools {
				st := pl.Stats
				open += st.Opening + st.Idle + st.Active + st.Testing + st.Closing
			}
			return open <= n
		})
		s.most.Store(0)
		before := done.Load()
		if n == 0 {
			s.awaitConnections(0)
		} else {
			p.await("work goes on", func(Snapshot) bool { return done.Load() > before+20 || t.Failed() })
		}
		if most := s.most.Load(); most > int64(n) {
			t.Errorf("%d server connections were open at once, %d were allowed", most, n)
		}
	}
	p.SetCapacity(s.name(), -1, never)
	close(over)
	ended.Wait()
	t.Logf("%d transactions, %d of them were ended by force", done.Load(), killed.Load())
	if killed.Load() == 0 {
		t.Error("no deadline passed")
	}
}

func TestEveryQueryIsCancelledAtTheDeadlineHoweverMany(t *testing.T) {
	const many = maxCancels + 30
	var requests atomic.Int64
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		m, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			return
		}
		if _, ok := m.(*pgproto3.CancelRequest); ok {
			requests.Add(1)
			return
		}
		c.Welcome()
		c.Query()
		c.AwaitEnd()
	})
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size, r.Pool.MaxConnecting = 0, 64 }))
	clients := make([]*caller, many)
	for i := range clients {
		clients[i] = p.call()
		clients[i].send(&pgproto3.Query{String: "forever"})
	}
	p.await("all are busy", func(s Snapshot) bool { return s.Pools[0].Stats.Active == many })
	p.SetCapacity(fmt.Sprintf("127.0.0.1:%d", f.Port()), 0, 0)
	for _, c := range clients {
		terminated(c)
	}
	p.await("every query is cancelled and every server connection gone", func(s Snapshot) bool {
		return requests.Load() == many && s.Servers == 0
	})
}
