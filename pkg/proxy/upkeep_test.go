package proxy

import (
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// How many server connections there are when nobody changes the capacity, and how they are renewed.

// S46
func TestTheReserveServesWhoHasWaitedLongEnough(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.ReserveSize, r.Pool.ReserveTimeout = 1, 1, soon })
	holder := p.transactions(1)[0]
	second, third := p.call(), p.call()
	start := time.Now()
	second.must("begin")
	if waited := time.Since(start); waited < soon {
		t.Errorf("the reserve was used after %v, allowed from %v on", waited, soon)
	}
	third.send(&pgproto3.Query{String: "select 'served'"})
	p.await("the third one waits beyond the reserve's time", func(s Snapshot) bool {
		return s.Pools[0].Stats.Waiting == 1 && s.Pools[0].OldestWait > 2*soon
	})
	if n := p.state().Servers; n != 2 {
		t.Errorf("there are %d server connections, want the one and the reserve", n)
	}
	holder.must("commit")
	if r := third.reply(); r.value(0) != "served" {
		t.Errorf("the third client was answered by %+v", r)
	}
}

// S47
func TestTheMinimumIsKeptWhileThereAreClients(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.MinSize, r.Pool.ServerIdleTimeout = 3, soon })
	c := p.call()
	p.await("three server connections", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 3 })
	for _, extra := range p.transactions(5) {
		extra.must("commit")
		departures["by Terminate"](extra)
	}
	before := p.await("five server connections", func(s Snapshot) bool { return s.Pools[0].Stats.Opened == 5 })
	p.await("three again, which stay", func(s Snapshot) bool {
		if s.Servers < 3 {
			t.Fatalf("there are %d server connections, below the minimum of 3", s.Servers)
		}
		return s.Servers == 3 && s.Uptime > before.Uptime+5*soon
	})
	departures["by Terminate"](c)
	p.await("none without clients", func(s Snapshot) bool { return s.Servers == 0 })
}

func TestIdleServerConnectionsTimeOut(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.ServerIdleTimeout = soon })
	clients := p.transactions(3)
	for _, c := range clients {
		c.must("commit")
	}
	p.await("all have timed out", func(s Snapshot) bool { return s.Servers == 0 })
	clients[0].must("select 1")
	if !strings.Contains(p.logs.String(), `reason="server idle timeout"`) {
		t.Error("the log does not say why")
	}
}

// S54
func TestServerConnectionsAreRenewedOneAfterTheOther(t *testing.T) {
	const lifetime, size = 400 * time.Millisecond, 4
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.ServerLifetime = size, lifetime })
	clients := p.transactions(size)
	for _, c := range clients {
		c.must("commit")
	}
	// All are in use all the time, so that whatever is closed is opened again.
	for opened := 0; opened < 3*size; opened = p.state().Pools[0].Stats.Opened {
		for _, c := range clients {
			c.send(&pgproto3.Query{String: "select pg_sleep(0.002)"})
		}
		for _, c := range clients {
			if r := c.reply(); r.err != nil || r.status != 'I' {
				t.Fatalf("a client was answered by %+v", r)
			}
		}
	}
	var closings []time.Time
	for line := range strings.Lines(p.logs.String()) {
		if strings.Contains(line, `reason="server lifetime over"`) {
			at, err := time.Parse(time.RFC3339Nano, strings.TrimPrefix(strings.Fields(line)[0], "time="))
			if err != nil {
				t.Fatal(err)
			}
			closings = append(closings, at)
		}
	}
	if len(closings) < 2*size {
		t.Fatalf("%d closings are logged, expected at least %d", len(closings), 2*size)
	}
	for i := 1; i < len(closings); i++ {
		// A line may be written late.
		if apart, least := closings[i].Sub(closings[i-1]), lifetime/size/4; apart < least {
			t.Errorf("closing %d came %v after the one before, expected at least %v", i, apart, least)
		}
	}
}

func TestALifetimeOfZeroIsOneUse(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.ServerLifetime = 2, 0 })
	c := p.call()
	seen := map[string]bool{}
	for range 5 {
		pid := c.must("begin; select pg_backend_pid()")
		if again := c.must("select pg_backend_pid()"); again != pid {
			t.Fatalf("the transaction moved from server process %s to %s", pid, again)
		}
		c.must("commit")
		if seen[pid] {
			t.Errorf("server process %s was used twice", pid)
		}
		seen[pid] = true
	}
}

// S3
func TestAServerProcessThatDiedWhileIdleIsNotUsed(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	p := startProxy(t, testSettings(s.Host, s.Port, func(r *Route) { r.Pool.CheckDelay = 0 }))
	c := p.call()
	var first int
	for _, b := range must(s.Backends(t.Context()))(t) {
		first = b.PID
	}
	// PostgreSQL ends all its other processes too and is away for a moment.
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await("it is gone", func(s Snapshot) bool { return s.Servers == 0 })
	c.must("select 1")
	if n := p.state().Counters.ServerCrashes; n != 0 {
		t.Errorf("%d clients have lost a server connection, nobody used it", n)
	}
}

// must unpacks a result that cannot be an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// S79
func TestAServerConnectionThatFailsItsCheckIsNotUsed(t *testing.T) {
	for name, fail := range map[string]func(*pgtest.FakeConn){
		"it answers with an error":        func(c *pgtest.FakeConn) { c.Error("ERROR", "XX000", "unwell"); c.Ready('I') },
		"it is in a transaction":          func(c *pgtest.FakeConn) { c.Complete("BEGIN"); c.Ready('T') },
		"it closes":                       func(c *pgtest.FakeConn) { c.Close() },
		"it closes in the middle":         func(c *pgtest.FakeConn) { c.CloseAfter(3); c.Ready('I') },
		"it says what nobody understands": func(c *pgtest.FakeConn) { c.Raw([]byte("400 Bad Request")); c.AwaitEnd() },
		"it says nothing":                 func(c *pgtest.FakeConn) { c.AwaitEnd() },
		"it says half of it":              func(c *pgtest.FakeConn) { c.Raw([]byte{'Z', 0, 0}); c.AwaitEnd() },
	} {
		t.Run(name, func(t *testing.T) {
			var checks atomic.Int64
			f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
				c.Login()
				for {
					sql := c.Query()
					if sql == "are you well?" {
						checks.Add(1)
						if c.Number == 1 {
							fail(c)
							continue
						}
						c.Answer("yes")
						continue
					}
					c.Answer(sql)
				}
			})
			set := testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size, r.Pool.CheckDelay = 1, 0 })
			set.ServerCheckQuery = "are you well?"
			hangs := strings.HasPrefix(name, "it says")
			if hangs {
				set.ServerConnectTimeout = soon
			}
			p := startProxy(t, set)
			c := p.call()
			for _, sql := range []string{"one", "two"} {
				if got := c.must(sql); got != sql {
					t.Errorf("the answer to %q is %q", sql, got)
				}
			}
			if n := f.Accepted(); n != 2 && !hangs { // with a short timeout another login may take too long
				t.Errorf("%d server connections were made, want 2", n)
			}
			if n := checks.Load(); n != 2 && !hangs {
				t.Errorf("%d checks were made, want 2: a new connection needs none", n)
			}
		})
	}
}

func TestAServerConnectionThatFailsItsResetIsNotUsedAgain(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) {
		r.Pool.Size, r.Pool.Mode, r.Pool.Reset, r.ResetQuery = 1, pool.Session, true, "select 1/0"
	})
	var seen []string
	for range 3 {
		c := p.call()
		c.must("set work_mem = '5MB'")
		if pid := c.must("select pg_backend_pid()"); slices.Contains(seen, pid) {
			t.Errorf("server process %s was used again", pid)
		} else {
			seen = append(seen, pid)
		}
		departures["by Terminate"](c)
	}
	p.await("all are gone", func(s Snapshot) bool { return s.Servers == 0 })
	if !strings.Contains(p.logs.String(), `reason="reset query failed"`) {
		t.Error("the log does not say why")
	}
}

// S50
func TestAClientWaitsNoLongerThanItMay(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.QueryWaitTimeout = 1, 2*time.Second })
	holder := p.transactions(1)[0]
	emptyTable(t, pgtest.Shared(t), "overdue")
	c := p.call()
	c.send(&pgproto3.Query{String: "insert into overdue values (1)"})
	if e := c.fatal(); e.Code != "53300" || !strings.Contains(e.Message, "query_wait_timeout") {
		t.Errorf("the client was told %s: %s", e.Code, e.Message)
	}
	holder.must("commit")
	if n := holder.must("select count(*) from overdue"); n != "0" {
		t.Error("the query was run although its client was sent away")
	}
}
