package proxy

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// stranded is a state that a client may vanish in, with a server connection of its own.
type stranded struct {
	name    string
	prepare func(c *caller)
	// lost: the protocol knows no way to clean up, so the server connection is closed.
	lost bool
	// notByTerminate: it would complete what was begun.
	notByTerminate bool
}

// endless is a result that only a cancel ends.
const endless = "select generate_series(1, 1000000000000), repeat('x', 200)"

var strandedStates = []stranded{
	{name: "idle in a transaction", prepare: begun},
	{name: "in a failed transaction", prepare: func(c *caller) {
		begun(c)
		c.ask("select 1/0")
	}},
	{name: "in a batch without Sync", prepare: func(c *caller) {
		c.send(insertion()...)
	}},
	{name: "in a batch that was flushed and answered", prepare: func(c *caller) {
		c.send(append(insertion(), &pgproto3.Flush{})...)
		until[*pgproto3.CommandComplete](c)
	}},
	{name: "in a batch without Sync in a transaction", prepare: func(c *caller) {
		begun(c)
		c.send(append(insertion(), &pgproto3.Flush{})...)
		until[*pgproto3.CommandComplete](c)
	}},
	{name: "in a batch that failed", prepare: func(c *caller) {
		c.send(append(insertion(), &pgproto3.Parse{Query: "no SQL"}, &pgproto3.Flush{})...)
		for {
			if _, failed := c.receive().(*pgproto3.ErrorResponse); failed {
				return
			}
		}
	}},
	{name: "in a batch that is about to fail", prepare: func(c *caller) {
		c.send(append(insertion(), &pgproto3.Parse{Query: "no SQL"})...)
	}},
	{name: "after Parse alone", prepare: func(c *caller) {
		c.send(&pgproto3.Parse{Query: "select 1"})
	}},
	{name: "in COPY IN", prepare: func(c *caller) {
		c.send(&pgproto3.Query{String: "copy strays from stdin"})
		until[*pgproto3.CopyInResponse](c)
		c.send(&pgproto3.CopyData{Data: []byte("1\n2\n")})
	}},
	{name: "in COPY IN in a transaction", prepare: func(c *caller) {
		begun(c)
		c.send(&pgproto3.Query{String: "copy strays from stdin"})
		until[*pgproto3.CopyInResponse](c)
		c.send(&pgproto3.CopyData{Data: []byte("1\n2\n")})
	}},
	{name: "in COPY IN by the extended protocol", prepare: func(c *caller) {
		c.send(&pgproto3.Parse{Query: "copy strays from stdin"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Flush{})
		until[*pgproto3.CopyInResponse](c)
		c.send(&pgproto3.CopyData{Data: []byte("1\n2\n")})
	}},
	{name: "in COPY IN after half a frame", lost: true, prepare: func(c *caller) {
		c.send(&pgproto3.Query{String: "copy strays from stdin"})
		until[*pgproto3.CopyInResponse](c)
		c.raw(partial('d', 1000, "1\n2\n"))
	}},
	{name: "in COPY OUT", prepare: func(c *caller) {
		c.send(&pgproto3.Query{String: "copy (" + endless + ") to stdout"})
		until[*pgproto3.CopyData](c)
	}},
	{name: "in the middle of a result", prepare: func(c *caller) {
		c.send(&pgproto3.Query{String: endless})
		until[*pgproto3.DataRow](c)
	}},
	{name: "in the middle of a result in a transaction", prepare: func(c *caller) {
		begun(c)
		c.send(&pgproto3.Query{String: endless})
		until[*pgproto3.DataRow](c)
	}},
	{name: "after half a query in a transaction", prepare: func(c *caller) {
		begun(c)
		c.raw(partial('Q', 1000, "select"))
	}},
	{name: "after half a query that is too long to be held back", lost: true, prepare: func(c *caller) {
		c.raw(partial('Q', 10*holdSize, strings.Repeat(" ", 2*holdSize)))
	}},
	{name: "after half a header in a transaction", notByTerminate: true, prepare: func(c *caller) {
		begun(c)
		c.raw([]byte{'Q', 0, 0})
	}},
}

// begun opens a transaction and leaves in it whatever the next client must not see.
func begun(c *caller) {
	for _, sql := range []string{
		"begin", "insert into strays values (1)", "set work_mem = '5MB'", "select pg_advisory_xact_lock(4711)",
		"declare leftover cursor for select 1", "listen leftover", "set application_name = 'leftover'", "set local datestyle = 'German'",
	} {
		c.must(sql)
	}
}

func insertion() []pgproto3.FrontendMessage {
	return []pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "insert into strays values (1)"}, &pgproto3.Bind{}, &pgproto3.Execute{},
	}
}

// awaitTrue repeats a query on the server until it says t.
func awaitTrue(t *testing.T, s *pgtest.Server, sql string) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	ticks := time.NewTicker(3 * time.Millisecond) // leaves the server time for others
	defer ticks.Stop()
	for ; ; <-ticks.C {
		rows, err := s.Query(ctx, sql)
		if err != nil {
			t.Fatalf("not true within %v: %s: %v", patience, sql, err)
		}
		if rows[0][0] == "t" {
			return
		}
	}
}

// S39, M15
func TestAClientThatVanishesCostsARollbackAndNotAServerConnection(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "strays")
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	for _, state := range strandedStates {
		for _, way := range slices.Sorted(maps.Keys(departures)) {
			if state.notByTerminate && way == "by Terminate" {
				continue
			}
			t.Run(state.name+" "+way, func(t *testing.T) {
				a, next := callAt(t, p.Addr), callAt(t, p.Addr)
				before := a.must("select pg_backend_pid()")
				state.prepare(a)
				p.await("it has a server connection", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 1 })
				next.send(&pgproto3.Query{String: `select pg_backend_pid(), (select count(*) from strays), current_setting('work_mem'),
					(select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'),
					(select count(*) from pg_cursors), (select count(*) from pg_listening_channels()), current_setting('application_name'),
					current_setting('datestyle')`})
				p.await("the next client waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
				departures[way](a)
				r := next.reply()
				if r.err != nil || len(r.rows) != 1 {
					t.Fatalf("the next client was answered by %+v", r)
				}
				if got, want := strings.Join(r.rows[0][1:], "|"), "0|4MB|0|0|0||ISO, MDY"; got != want {
					t.Errorf("the next client sees %s, want %s", got, want)
				}
				if kept := r.value(0) == before; kept == state.lost {
					t.Errorf("the server connection was kept: %v, want %v", kept, !state.lost)
				}
			})
		}
	}
	p.await("nothing is left of the clients", func(s Snapshot) bool { return s.Clients == 0 && s.BuffersLent == 0 })
}

func TestAClientThatVanishesWhileEverythingIsFullIsCleanedUpAfter(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	for _, way := range slices.Sorted(maps.Keys(departures)) {
		t.Run(way, func(t *testing.T) {
			a, next := callAt(t, p.Addr), callAt(t, p.Addr)
			pid := a.must("select pg_backend_pid()")
			a.send(&pgproto3.Query{String: endless})
			// The server cannot write any more, for good.
			for seen := 0; seen < 20; seen++ {
				rows, err := s.Query(t.Context(), "select wait_event = 'ClientWrite' from pg_stat_activity where pid = "+pid)
				if err != nil {
					t.Fatal(err)
				}
				if rows[0][0] != "t" {
					seen = 0
				}
			}
			next.send(&pgproto3.Query{String: "select pg_backend_pid()"})
			p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
			departures[way](a)
			if r := next.reply(); r.err != nil || r.value(0) != pid {
				t.Errorf("the next client was answered by %+v, want server process %s", r, pid)
			}
		})
	}
}

func TestAClientThatVanishesWhileItWaitsIsNotServed(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "unserved")
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	holder, next := p.call(), p.call()
	for _, way := range slices.Sorted(maps.Keys(departures)) {
		for name, pause := range map[string]bool{"after a while": true, "at once": false} {
			t.Run(way+" "+name, func(t *testing.T) {
				holder.must("begin")
				a := callAt(t, p.Addr)
				a.send(&pgproto3.Query{String: "insert into unserved values (1)"})
				if pause {
					p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
				}
				departures[way](a)
				p.await("it is gone while the server connection is taken", func(s Snapshot) bool { return s.Clients == 2 })
				next.send(&pgproto3.Query{String: "select count(*) from unserved"})
				p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
				holder.must("commit")
				if r := next.reply(); r.err != nil || r.value(0) != "0" {
					t.Errorf("the next client was answered by %+v", r)
				}
			})
		}
	}
}

func TestTheQueryOfAVanishedClientEndsWithItsTransaction(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	s := pgtest.Shared(t)
	for _, way := range []string{"by FIN", "by RST"} {
		t.Run(way, func(t *testing.T) {
			a, next := callAt(t, p.Addr), callAt(t, p.Addr)
			pid := a.must("select pg_backend_pid()")
			a.must("begin")
			a.send(&pgproto3.Query{String: "select pg_sleep(600)"})
			awaitTrue(t, s, "select wait_event = 'PgSleep' from pg_stat_activity where pid = "+pid)
			next.send(&pgproto3.Query{String: "select pg_backend_pid()"})
			departures[way](a)
			if r := next.reply(); r.err != nil || r.value(0) != pid {
				t.Errorf("the next client was answered by %+v, want %s", r, pid)
			}
		})
	}
}

func TestTheQueryOfAClientThatSaidGoodbyeIsFinished(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "lastwill")
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	a, next := p.call(), p.call()
	pid := a.must("select pg_backend_pid()")
	lock, err := tryCall(t, s.Addr(), "database", pgtest.Database)
	if err != nil {
		t.Fatal(err)
	}
	lock.must("select pg_advisory_lock(815)")
	a.must("begin")
	a.must("insert into lastwill values (1)")
	a.send(&pgproto3.Query{String: "select pg_advisory_xact_lock(815)"}, &pgproto3.Query{String: "commit"}, &pgproto3.Terminate{})
	awaitTrue(t, s, "select wait_event = 'advisory' from pg_stat_activity where pid = "+pid)
	next.send(&pgproto3.Query{String: "select pg_backend_pid(), (select count(*) from lastwill)"})
	p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	lock.must("select pg_advisory_unlock(815)")
	if r := next.reply(); r.err != nil || r.value(0) != pid || r.value(1) != "1" {
		t.Errorf("the next client was answered by %+v, want server process %s and one row", r, pid)
	}
}

func TestASessionThatVanishesLeavesACleanServerConnection(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) {
		r.Pool.Size, r.Pool.Mode, r.Pool.Reset, r.ResetQuery = 1, pool.Session, true, "DISCARD ALL"
	})
	for _, transaction := range []string{"", "begin", "begin; select 1/0"} {
		for _, way := range slices.Sorted(maps.Keys(departures)) {
			t.Run(transaction+way, func(t *testing.T) {
				a := callAt(t, p.Addr)
				pid := a.must("select pg_backend_pid()")
				for _, sql := range []string{
					"create temp table mine (x int)", "set work_mem = '5MB'", "select pg_advisory_lock(4712)", "listen mine",
					"prepare mine as select 1", "declare mine cursor with hold for select 1", "set application_name = 'mine'",
				} {
					a.must(sql)
				}
				a.ask(transaction)
				next := callAt(t, p.Addr)
				next.send(&pgproto3.Query{String: `select pg_backend_pid(), to_regclass('pg_temp.mine') is null, current_setting('work_mem'),
					(select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'), (select count(*) from pg_cursors),
					(select count(*) from pg_listening_channels()), (select count(*) from pg_prepared_statements), current_setting('application_name')`})
				p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
				departures[way](a)
				r := next.reply()
				if r.err != nil {
					t.Fatalf("the next client was answered by %+v", r.err)
				}
				if got, want := strings.Join(r.rows[0], "|"), pid+"|t|4MB|0|0|0|0|"; got != want {
					t.Errorf("the next session sees %s, want %s", got, want)
				}
				departures["by Terminate"](next)
			})
		}
	}
}

// aroundParams serves a fake server that answers "SET"s when it is told to, and otherwise any query by the number of its
// connection.
func aroundParams(asked chan<- string, answer <-chan struct{}) func(*pgtest.FakeConn) {
	return func(c *pgtest.FakeConn) {
		c.Login()
		for {
			sql := c.Query()
			if strings.HasPrefix(sql, "SET") {
				asked <- sql
				<-answer
				for _, v := range strings.Split(sql, "'")[1:2] {
					c.ParameterStatus("application_name", v)
				}
				c.Complete("SET")
				c.Ready('I')
				continue
			}
			c.Answer(sql)
		}
	}
}

func TestAClientThatVanishesWhileItsParametersAreSetCostsNothing(t *testing.T) {
	for _, way := range slices.Sorted(maps.Keys(departures)) {
		t.Run(way, func(t *testing.T) {
			asked, answer := make(chan string, 10), make(chan struct{}, 10)
			f := pgtest.NewFake(t, aroundParams(asked, answer))
			p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
			next := p.call("application_name", "next")
			a := p.call("application_name", "vanishing")
			a.send(&pgproto3.Query{String: "never seen"})
			if sql := <-asked; !strings.Contains(sql, "'vanishing'") {
				t.Errorf("the server connection was prepared by %s", sql)
			}
			departures[way](a)
			next.send(&pgproto3.Query{String: "hello"})
			p.await("the next one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
			answer <- struct{}{}
			if sql := <-asked; !strings.Contains(sql, "'next'") {
				t.Errorf("the server connection was prepared by %s", sql)
			}
			answer <- struct{}{}
			if r := next.reply(); r.err != nil || r.value(0) != "hello" {
				t.Errorf("the next client was answered by %+v", r)
			}
			if n := f.Accepted(); n != 1 {
				t.Errorf("%d server connections were made, want 1", n)
			}
			p.await("it is gone", func(s Snapshot) bool { return s.Clients == 1 })
		})
	}
}

func TestAServerWhoseLastWordComesWithItsEndIsNoticed(t *testing.T) {
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		c.Answer(c.Query())
		c.Query()
		c.Error("FATAL", "57P01", "last word")
	})
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
	for range 50 {
		c := p.call()
		c.must("first")
		c.send(&pgproto3.Query{String: "second"})
		if e := c.fatal(); e.Message != "last word" {
			t.Fatalf("got %q", e.Message)
		}
		_ = c.conn.Close()
	}
	p.await("nothing is left", func(s Snapshot) bool { return s.Clients == 0 && s.Servers == 0 })
}
