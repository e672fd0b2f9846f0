package proxy

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
)

func TestARefusalTellsWhomItConcerns(t *testing.T) {
	const none = pool.Pressures
	for _, c := range []struct {
		code, routine, message string
		want                   pool.Pressure
	}{
		{"53300", "InitializeSessionUserId", `zu viele Verbindungen von Rolle »x«`, pool.OnRole},
		{"53300", "CheckMyDatabase", `слишком много подключений к БД "y"`, pool.OnDatabase},
		{"53300", "InitProcess", "sorry, too many clients already", pool.OnServer},
		{"53300", "InitPostgres", "remaining connection slots are reserved for roles with the SUPERUSER attribute", pool.OnServer},
		{"53300", "", `too many connections for role "x"`, pool.OnRole},
		{"53300", "", `too many connections for database "y"`, pool.OnDatabase},
		{"53300", "InitProcess", `too many connections for role "x"`, pool.OnServer},
		{"53300", "", "no more connections allowed (max_client_conn)", pool.OnServer},
		{"57P03", "ProcessStartupPacket", "the database system is starting up", pool.OnServer},
		{"57P01", "", "terminating connection due to administrator command", pool.OnServer},
		{"57P02", "", "", pool.OnServer},
		{"28P01", "InitializeSessionUserId", "", none},
		{"3D000", "", "", none},
		{"", "", "sorry, too many clients already", none},
	} {
		e := loginError((&pgwireError{c.code, c.routine, c.message}).body())
		got, ok := e.pressure()
		if !ok {
			got = none
		}
		if got != c.want {
			t.Errorf("%s %s %q: got %d, want %d", c.code, c.routine, c.message, got, c.want)
		}
	}
	if _, ok := (*LoginError)(nil).pressure(); ok {
		t.Error("no refusal is back-pressure")
	}
	if _, ok := during("connect_query", &LoginError{ErrorFields: pgwire.ErrorFields{Code: "53300"}}).pressure(); ok {
		t.Error("an error of a query is back-pressure")
	}
}

type pgwireError struct{ code, routine, message string }

func (e *pgwireError) body() []byte {
	b, err := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: e.code, Message: e.message, File: "x.c", Line: 7, Routine: e.routine}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return b[pgwire.HeaderSize:]
}

// fullServer is a server that refuses its first logins. It fails the test when several are tried at once after the first
// round.
type fullServer struct {
	t          *testing.T
	code, text string
	routine    string
	first      int // attempts of the first round
	refuse     int // in all
	arrived    sync.WaitGroup
	under      atomic.Int32
}

func (s *fullServer) serve(c *pgtest.FakeConn) {
	under := s.under.Add(1)
	leave := sync.OnceFunc(func() { s.under.Add(-1) })
	defer leave()
	c.Startup()
	switch {
	case c.Number > s.refuse:
		leave()
		c.Welcome()
		echoQueries(c)
	case c.Number <= s.first:
		s.arrived.Done()
		s.arrived.Wait()
	case under > 1:
		s.t.Errorf("attempt %d was made beside %d others", c.Number, under-1)
	}
	leave() // before the answer, after which the next one may come
	c.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: s.code, Message: s.text, Routine: s.routine})
}

func TestServersThatHaveNoRoomNowKeepTheirClientsWaiting(t *testing.T) {
	for _, c := range []struct {
		code, text, routine string
		scope               pool.Pressure
	}{
		{"53300", "sorry, too many clients already", "InitProcess", pool.OnServer},
		{"53300", `too many connections for role "postgres"`, "InitializeSessionUserId", pool.OnRole},
		{"53300", `too many connections for database "postgres"`, "CheckMyDatabase", pool.OnDatabase},
		{"57P03", "the database system is starting up", "", pool.OnServer},
		{"57P01", "terminating connection due to administrator command", "", pool.OnServer},
	} {
		t.Run(c.code+" "+c.scope.String(), func(t *testing.T) {
			t.Parallel()
			const first, refused, clients = 4, 9, 8
			s := &fullServer{t: t, code: c.code, text: c.text, routine: c.routine, first: first, refuse: refused}
			s.arrived.Add(first)
			var mu sync.Mutex
			var told []Backpressure
			p, f := pooledFake(t, s.serve, func(set *Settings, r *Route) {
				set.OnBackpressure = func(b Backpressure) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, b)
				}
				r.Pool.MaxConnecting, r.Pool.Size, r.Pool.LoginRetry = first, clients, 200*time.Millisecond
			})
			var waiting sync.WaitGroup
			for range clients {
				waiting.Go(func() {
					r := p.raw(t).send(hello("user", "app", "database", "app"))
					r.until('Z')
					if got := r.ask("select 7"); got != "select 7" {
						t.Errorf("got %q", got)
					}
				})
			}
			waiting.Wait()
			st := p.state()
			mu.Lock()
			defer mu.Unlock()
			if n := st.Counters.Backpressure[c.scope]; n != refused || len(told) != refused {
				t.Errorf("%d refusals are counted and %d were told, want %d", n, len(told), refused)
			}
			for _, b := range told {
				if b.Scope != c.scope || b.SQLSTATE != c.code || b.Addr != f.Addr() || b.Server != f.Addr() || b.Key.User != pgtest.User || b.At.IsZero() {
					t.Fatalf("told %+v", b)
				}
			}
			if got := st.DialFailures[c.code]; got != refused {
				t.Errorf("%d failures with %s are counted, want %d", got, c.code, refused)
			}
		})
	}
}

func TestBackPressureEndsWithTheWaitLimit(t *testing.T) {
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Startup()
		c.Error("FATAL", "53300", "sorry, too many clients already")
	}, func(_ *Settings, r *Route) { r.Pool.QueryWaitTimeout = 700 * time.Millisecond })
	began := time.Now()
	p.raw(t).send(hello("user", "app", "database", "app")).refused("53300", "query_wait_timeout: no server connection became free within 700ms")
	if took := time.Since(began); took < 700*time.Millisecond {
		t.Errorf("it waited for %v only", took)
	}
	if n := f.Accepted(); n < 2 || n > 100 {
		t.Errorf("%d attempts were made, want some", n)
	}
}

func TestPressureOnOnePoolLeavesOthersAlone(t *testing.T) {
	release := make(chan struct{})
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		if c.Startup()["user"] == "limited" {
			select {
			case <-release:
			default:
				c.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "53300", Message: "?", Routine: roleLimitRoutine})
				return
			}
		}
		c.Welcome()
		echoQueries(c)
	}, nil)
	set := p.set
	route := set.Route
	next := *set
	next.Route = func(database, user string) (Route, bool) {
		r, ok := route(database, user)
		r.User, r.Pool.LoginRetry = user, time.Hour
		return r, ok
	}
	p.Reload(&next)
	r := p.raw(t).send(hello("user", "limited", "database", "app"))
	p.await("some refusals", func(s Snapshot) bool { return s.Counters.Backpressure[pool.OnRole] >= 5 })
	for range 3 {
		undisturbed(t, p.call("user", "free"))
	}
	close(release)
	r.until('Z')
	if n := p.state().Counters.Backpressure; n[pool.OnServer]+n[pool.OnDatabase] != 0 {
		t.Errorf("got %v, want pressure on a role alone", n)
	}
	if f.Accepted() < 6 {
		t.Errorf("%d connections", f.Accepted())
	}
}

func TestConnectionLimitsOfPostgresAreBackPressure(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{MaxConnections: 7, Settings: map[string]string{"superuser_reserved_connections": "3"}})
	if err := s.Exec(t.Context(), "create role limited login connection limit 1; create role free login; create role other login; create role third login"); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(t.Context(), "create database capped connection limit 1"); err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, testSettings(s.Host, s.Port, nil))
	next := *p.set
	route := next.Route
	next.Route = func(database, user string) (Route, bool) {
		r, ok := route(database, user)
		r.User, r.DBName, r.Pool.LoginRetry = user, database, 200*time.Millisecond
		return r, ok
	}
	p.Reload(&next)
	for _, c := range []struct {
		scope          pool.Pressure
		database, user string
		fills          int
	}{
		{pool.OnRole, pgtest.Database, "limited", 1},
		{pool.OnDatabase, "capped", "free", 1},
		{pool.OnServer, pgtest.Database, "third", 4},
	} {
		t.Run(c.scope.String(), func(t *testing.T) {
			before := p.state().Counters.Backpressure
			// Straight to the server, so that the pooler has none of its own.
			var direct []*caller
			if c.scope == pool.OnServer {
				p.await("the others' end", func(Snapshot) bool {
					rows, err := s.Query(t.Context(), "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
					return err == nil && rows[0][0] == "0"
				})
			}
			for range c.fills {
				direct = append(direct, callAt(t, s.Addr(), "database", c.database, "user", c.user))
			}
			r := p.raw(t).send(hello("user", c.user, "database", c.database))
			st := p.await("pressure", func(st Snapshot) bool { return st.Counters.Backpressure[c.scope] >= before[c.scope]+3 })
			for scope, n := range st.Counters.Backpressure {
				if pool.Pressure(scope) != c.scope && n != before[scope] {
					t.Errorf("pressure on the %v as well", pool.Pressure(scope))
				}
			}
			if c.scope != pool.OnServer {
				undisturbed(t, p.call("user", "other", "database", pgtest.Database))
			}
			_ = direct[0].conn.Close()
			r.until('Z')
			_ = r.conn.Close()
			closeAll(p) // for the next one
		})
	}
}

// closeAll has every server connection closed.
func closeAll(p *pooler) {
	p.t.Helper()
	p.loop.Post(func() {
		for _, bp := range p.pools.All() {
			p.pools.Recycle(p.now(), bp)
		}
		p.settle()
	})
	p.await("no server connection", func(s Snapshot) bool { return s.Servers == 0 })
}

func TestARefusalForGoodIsToldAtOnceUntilTheNextAttempt(t *testing.T) {
	var refused atomic.Bool
	refused.Store(true)
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Startup()
		if refused.Load() {
			c.Error("FATAL", "3D000", `database "app" does not exist`)
			return
		}
		c.Welcome()
		echoQueries(c)
	}, func(_ *Settings, r *Route) { r.Pool.LoginRetry = time.Second })
	const fresh = `server login failed: database "app" does not exist`
	const cached = `server login has been failing, cached error: database "app" does not exist (server_login_retry)`
	seen := map[string]int{}
	for range 60 {
		_, err := tryCall(t, p.Addr)
		switch {
		case err == nil:
			t.Fatal("it was let in")
		case strings.Contains(err.Error(), cached):
			seen[cached]++
		case strings.Contains(err.Error(), fresh):
			seen[fresh]++
		default:
			t.Fatal(err)
		}
	}
	if seen[cached] == 0 || seen[fresh] == 0 || seen[fresh] != f.Accepted() {
		t.Errorf("%d were told at once and %d after an attempt, of which there were %d", seen[cached], seen[fresh], f.Accepted())
	}
	refused.Store(false)
	for {
		if _, err := tryCall(t, p.Addr); err == nil {
			break
		}
	}
	if _, err := tryCall(t, p.Addr); err != nil {
		t.Errorf("after a login that succeeded: %v", err)
	}
}
