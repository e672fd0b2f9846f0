package proxy

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// lockLookups locks the table that lookup.users reads until the returned function is called.
func lockLookups(t *testing.T, s *pgtest.Server) (unlock func()) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), s.URL(pgtest.User, pgtest.Password, pgtest.Database))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(context.Background(), "begin; lock table lookup.secrets in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = c.Close(context.Background()) })
	t.Cleanup(unlock)
	return unlock
}

const waitingLookups = "select pid from pg_stat_activity where usename = 'reader' and wait_event_type = 'Lock'"

// awaitRows waits until a query returns so many rows.
func awaitRows(t *testing.T, s *pgtest.Server, sql string, n int) [][]string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		rows := query(t, s, sql)
		if len(rows) == n {
			return rows
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d rows, want %d", sql, len(rows), n)
		}
	}
}

// ownLookupServer is lookupServer for a test that locks.
func ownLookupServer(t *testing.T) *pgtest.Server {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{Auth: pgtest.SCRAM})
	setUpLookups(t, s)
	query(t, s, "create role alice login password 'right'")
	return s
}

// These share a server, so they run one after the other.
// S69, S70
func TestASlowAuthQuery(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := ownLookupServer(t)

	t.Run("runs into query_wait_timeout and leaves a clean connection", func(t *testing.T) {
		p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, func(r *Route) { r.Pool.QueryWaitTimeout = time.Second }))
		unlock := lockLookups(t, s)
		done := make(chan error, 1)
		go func() { _, err := p.login("alice", "right"); done <- err }()
		awaitRows(t, s, waitingLookups, 1)
		p.letIn(t, "reader", readerPassword) // is in the user list, and has another connection of the same pool
		var e *pgconn.PgError
		if err := <-done; !errors.As(err, &e) || e.Code != "53300" || !strings.HasPrefix(e.Message, "query_wait_timeout: ") {
			t.Errorf("got %v", err)
		}
		awaitRows(t, s, waitingLookups, 0) // canceled although the lock is still there
		unlock()
		p.letIn(t, "alice", "right")
		if st := p.statsOf("reader"); st.Opened != 2 || st.Closing != 0 {
			t.Errorf("the connection was not kept: %+v", st)
		}
	})

	for name, leave := range departures {
		t.Run("is canceled when its client leaves "+name, func(t *testing.T) {
			p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, func(r *Route) { r.Pool.Size = 1 }))
			unlock := lockLookups(t, s)
			r := p.raw(t)
			r.send(hello("user", "alice", "database", "app"))
			awaitRows(t, s, waitingLookups, 1)
			leave(&caller{t: t, conn: r.conn.(*net.TCPConn)})
			awaitRows(t, s, waitingLookups, 0)
			p.await("the connection is clean", func(s Snapshot) bool { return s.Clients == 0 && s.Pools[0].Stats.Idle == 1 })
			unlock()
			p.letIn(t, "alice", "right")
			if st := p.statsOf("reader"); st.Opened != 1 {
				t.Errorf("the connection was not kept: %+v", st)
			}
		})
	}

	t.Run("is asked again when its connection is killed", func(t *testing.T) {
		p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, nil))
		unlock := lockLookups(t, s)
		done := make(chan error, 1)
		go func() { _, err := p.login("alice", "right"); done <- err }()
		pid := awaitRows(t, s, waitingLookups, 1)[0][0]
		query(t, s, "select pg_terminate_backend("+pid+")")
		awaitRows(t, s, waitingLookups+" and pid <> "+pid, 1)
		unlock()
		if err := <-done; err != nil {
			t.Error(err)
		}
		unlock = lockLookups(t, s)
		defer unlock()
		go func() { _, err := p.login("alice", "right"); done <- err }()
		for range 2 { // not for ever
			query(t, s, "select pg_terminate_backend("+awaitRows(t, s, waitingLookups, 1)[0][0]+")")
		}
		var e *pgconn.PgError
		if err := <-done; !errors.As(err, &e) || e.Code != "08006" {
			t.Errorf("got %v", err)
		}
	})

	t.Run("serves all who wait for the same user", func(t *testing.T) {
		query(t, s, `create sequence if not exists lookup.runs; grant all on sequence lookup.runs to reader; select setval('lookup.runs', 1)`)
		set := lookupSettings(s, ScramSHA256, "select name, secret from lookup.users($1), nextval('lookup.runs') n where n > 0", nil)
		p := startProxy(t, set)
		unlock := lockLookups(t, s)
		const crowd = 300
		raws := make([]*raw, crowd)
		for i := range raws {
			raws[i] = p.raw(t).send(hello("user", "alice", "database", "app"))
		}
		awaitRows(t, s, waitingLookups, 1)
		p.await("all are there", func(s Snapshot) bool { return s.Counters.Accepted == crowd })
		first := awaitRows(t, s, waitingLookups, 1)[0][0]
		unlock()
		for _, r := range raws {
			if m, err := r.hear(); err != nil || m.kind != 'R' {
				t.Fatalf("got %q, %v", m.kind, err)
			}
			_ = r.conn.Close()
		}
		if n := query(t, s, "select last_value - 1 from lookup.runs")[0][0]; n != "1" && n != "2" {
			t.Errorf("%d logins took %s runs (connection %s), want one, and one for those who came later", crowd, n, first)
		}
	})

	t.Run("is never older than the login it is for", func(t *testing.T) {
		gate, err := pgx.Connect(context.Background(), s.URL(pgtest.User, pgtest.Password, pgtest.Database))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = gate.Close(context.Background()) })
		if _, err := gate.Exec(context.Background(), "select pg_advisory_lock(7)"); err != nil {
			t.Fatal(err)
		}
		// What it answers is read before it waits.
		p := startProxy(t, lookupSettings(s, ScramSHA256, "select name, secret from lookup.users($1), lateral (select pg_advisory_lock_shared(7) where name <> '') w", nil))
		done := make(chan error, 1)
		go func() { _, err := p.login("alice", "right"); done <- err }()
		awaitRows(t, s, waitingLookups, 1)
		query(t, s, "alter role alice password 'newer'")
		later := make(chan error, 1)
		go func() { _, err := p.login("alice", "newer"); later <- err }()
		p.await("both are there", func(s Snapshot) bool { return s.Clients == 2 && s.Counters.LoginFailures == 0 })
		if err := gate.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		// The keys of the earlier login, which the server does not take any more, are no reason to refuse the later one.
		if err := <-later; err != nil {
			t.Errorf("the later login: %v", err)
		}
		t.Logf("the earlier login: %v", <-done) // refused by the server, or let in by what the later one proved
		query(t, s, "alter role alice password 'right'")
	})

	t.Run("waits for another connection when capacity takes its own", func(t *testing.T) {
		set := lookupSettings(s, ScramSHA256, lookupQuery, nil)
		set.MaxPrepared = 0
		p := startProxy(t, set)
		unlock := lockLookups(t, s)
		done := make(chan error, 1)
		go func() { _, err := p.login("alice", "right"); done <- err }()
		awaitRows(t, s, waitingLookups, 1)
		p.SetCapacity(s.Addr(), 0, 0)
		awaitRows(t, s, waitingLookups, 0)
		p.await("it waits", func(s Snapshot) bool { return statsOf(s, "reader").Waiting == 1 && s.Servers == 0 })
		unlock()
		p.SetCapacity(s.Addr(), 2, 0)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	t.Run("ends with the pooler", func(t *testing.T) {
		p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, nil))
		defer lockLookups(t, s)()
		r := p.raw(t).send(hello("user", "alice", "database", "app"))
		awaitRows(t, s, waitingLookups, 1)
		p.Stop()
		<-p.ended
		r.refused("57P01", "terminating connection: the pooler is shutting down")
		awaitRows(t, s, waitingLookups, 0)
	})

	t.Run("survives a reload that takes its database away", func(t *testing.T) {
		set := lookupSettings(s, ScramSHA256, lookupQuery, nil)
		p := startProxy(t, set)
		unlock := lockLookups(t, s)
		r := p.raw(t).send(hello("user", "alice", "database", "app"))
		awaitRows(t, s, waitingLookups, 1)
		gone := *set
		gone.Route = func(string, string) (Route, bool) { return Route{}, false }
		gone.AuthRoute = gone.Route
		p.Reload(&gone)
		unlock()
		if m, err := r.hear(); err != nil || m.kind != 'R' {
			t.Errorf("got %q, %v", m.kind, err)
		}
		_ = r.conn.Close()
		p.await("nothing is left", func(s Snapshot) bool { return s.Clients == 0 && s.Servers == 0 })
	})
}
