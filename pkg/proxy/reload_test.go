package proxy

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// reloaded applies changed settings and waits until they are in force.
func (p *pooler) reloaded(t *testing.T, set *Settings) {
	t.Helper()
	p.Reload(set)
	p.state() // comes after it
}

// named serves like echo, but answers "who" with a name.
func named(name string) func(*pgtest.FakeConn) {
	return func(c *pgtest.FakeConn) {
		c.Login()
		status := byte('I')
		for {
			sql := c.Query()
			switch sql {
			case "begin":
				status = 'T'
			case "commit":
				status = 'I'
			case "who":
				sql = name
			}
			c.Columns("a")
			c.Row(sql)
			c.Complete("SELECT 1")
			c.Ready(status)
		}
	}
}

func TestALargerPoolServesWaitersAtOnce(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	sized := func(n int) *Settings { return fakeSettings(f, func(_ *Settings, r *Route) { r.Pool.Size = n }) }
	p := startProxy(t, sized(1))
	holder, waiting := p.raw(t).login(), p.raw(t).login()
	holder.ask("begin")
	waiting.send(packet('Q', "select 7\x00"))
	p.await("one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	p.reloaded(t, sized(2))
	waiting.until('Z')
	holder.ask("commit")
}

// S78
func TestASmallerPoolClosesIdleServersAtOnceAndBusyOnesWhenTheyAreDone(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	sized := func(n int) *Settings { return fakeSettings(f, func(_ *Settings, r *Route) { r.Pool.Size = n }) }
	p := startProxy(t, sized(4))
	var clients []*raw
	for range 4 {
		clients = append(clients, p.raw(t).login())
		clients[len(clients)-1].ask("begin")
	}
	for _, c := range clients[2:] {
		c.ask("commit")
	}
	p.await("two are idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 2 })
	p.reloaded(t, sized(1))
	f.AwaitOpen(t, 2)
	for _, c := range clients[:2] {
		if got := c.ask("select 7"); got != "select 7" {
			t.Errorf("a transaction under way got %q", got)
		}
		c.ask("commit")
	}
	f.AwaitOpen(t, 1)
	for _, c := range clients {
		if got := c.ask("select 7"); got != "select 7" {
			t.Errorf("got %q", got)
		}
	}
}

// S77
func TestARemovedDatabaseEndsItsWaitersAndItsServers(t *testing.T) {
	pgtest.CheckLeaks(t)
	f := pgtest.NewFake(t, echo)
	with := func(databases ...string) *Settings {
		set := fakeSettings(f, func(_ *Settings, r *Route) { r.Pool.Size = 1 })
		route := set.Route
		set.Route = func(database, user string) (Route, bool) {
			r, ok := route(database, user)
			return r, ok && strings.Contains(strings.Join(databases, " "), database)
		}
		return set
	}
	p := startProxy(t, with("gone", "kept"))
	in := func(database string) *raw {
		r := p.raw(t).send(hello("user", "app", "database", database))
		r.until('Z')
		return r
	}
	kept := in("kept")
	holder, waiting, idle := in("gone"), in("gone"), in("gone")
	holder.ask("begin")
	waiting.send(packet('Q', "select 7\x00"))
	p.await("one waits", func(s Snapshot) bool { return s.Clients == 4 && s.Pools[0].Stats.Waiting == 1 })

	p.reloaded(t, with("kept", "new"))
	waiting.refused("3D000", "database removed")
	if got := holder.ask("select 7"); got != "select 7" {
		t.Errorf("the transaction under way got %q", got)
	}
	holder.ask("commit")
	f.AwaitOpen(t, 1) // that of kept
	for _, c := range []*raw{holder, idle} {
		c.send(packet('Q', "select 7\x00")).refused("3D000", "database removed")
	}
	p.raw(t).send(hello("user", "app", "database", "gone")).refused("3D000", "no such database: gone")
	for _, c := range []*raw{kept, in("new")} {
		if got := c.ask("select 7"); got != "select 7" {
			t.Errorf("another database answers %q", got)
		}
	}
	p.await("its pool is gone", func(s Snapshot) bool { return len(s.Pools) == 2 })
	// It may come back.
	p.reloaded(t, with("gone", "kept"))
	if got := in("gone").ask("select 7"); got != "select 7" {
		t.Errorf("a database that came back answers %q", got)
	}
}

func TestAnotherHostTakesOverWhenTransactionsAreDone(t *testing.T) {
	pgtest.CheckLeaks(t)
	old, fresh := pgtest.NewFake(t, named("old")), pgtest.NewFake(t, named("new"))
	p := startProxy(t, fakeSettings(old, nil))
	busy, idle := p.raw(t).login(), p.raw(t).login()
	busy.ask("begin")
	if got := idle.ask("who"); got != "old" {
		t.Fatalf("got %q", got)
	}
	p.reloaded(t, fakeSettings(fresh, nil))
	if got := idle.ask("who"); got != "new" {
		t.Errorf("after the reload a query goes to %q", got)
	}
	if got := busy.ask("who"); got != "old" {
		t.Errorf("a transaction under way goes to %q", got)
	}
	busy.ask("commit")
	if got := busy.ask("who"); got != "new" {
		t.Errorf("after its transaction a client goes to %q", got)
	}
	old.AwaitOpen(t, 0)
	if got := p.raw(t).login().ask("who"); got != "new" {
		t.Errorf("a new client goes to %q", got)
	}
}

func TestChangedConnectSettingsRenewServerConnections(t *testing.T) {
	for name, change := range map[string]func(*Route){
		"dbname":             func(r *Route) { r.DBName = "other" },
		"password":           func(r *Route) { r.Password = "other" },
		"startup parameters": func(r *Route) { r.Startup = map[string]string{"application_name": "other"} },
	} {
		t.Run(name, func(t *testing.T) {
			f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
				params := maps.Clone(c.Startup())
				params["password"] = c.AskPassword()
				c.Welcome()
				for {
					c.Query()
					c.Answer(params["database"] + params["password"] + params["application_name"])
				}
			})
			set := func(edit func(*Route)) *Settings {
				return fakeSettings(f, func(_ *Settings, r *Route) { r.DBName, r.Password = "one", "two"; edit(r) })
			}
			p := startProxy(t, set(func(*Route) {}))
			c := p.raw(t).login()
			if got := c.ask("who"); got != "onetwo" {
				t.Fatalf("got %q", got)
			}
			p.reloaded(t, set(func(*Route) {})) // the same: nothing happens
			c.ask("who")
			if n := f.Accepted(); n != 1 {
				t.Errorf("%d connections after a reload that changed nothing", n)
			}
			p.reloaded(t, set(change))
			if got := c.ask("who"); !strings.Contains(got, "other") {
				t.Errorf("still connected with %q", got)
			}
			f.AwaitOpen(t, 1)
		})
	}
}

func TestChangedLimitsHoldForThoseWhoComeNext(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	for name, limit := range map[string]func(*Settings, *Route, int){
		"no more connections allowed (max_client_conn)":             func(s *Settings, _ *Route, n int) { s.MaxClients = n },
		"client connections exceeded (max_db_client_connections)":   func(_ *Settings, r *Route, n int) { r.MaxDatabaseClients = n },
		"client connections exceeded (max_user_client_connections)": func(_ *Settings, r *Route, n int) { r.MaxUserClients = n },
	} {
		t.Run(name, func(t *testing.T) {
			set := func(n int) *Settings { return fakeSettings(f, func(s *Settings, r *Route) { limit(s, r, n) }) }
			p := startProxy(t, set(10))
			clients := []*raw{p.raw(t).login(), p.raw(t).login(), p.raw(t).login()}
			p.reloaded(t, set(2))
			for _, c := range clients { // they stay
				if got := c.ask("select 7"); got != "select 7" {
					t.Errorf("got %q", got)
				}
			}
			p.raw(t).send(hello("user", "app", "database", "app")).refused("53300", name)
			p.reloaded(t, set(4))
			p.raw(t).login()
			p.reloaded(t, set(0)) // none
			p.raw(t).login()
			p.raw(t).login()
		})
	}
	t.Run("of servers", func(t *testing.T) {
		set := func(n int) *Settings {
			return fakeSettings(f, func(_ *Settings, r *Route) { r.MaxDatabaseBackends = n })
		}
		p := startProxy(t, set(1))
		holder, waiting := p.raw(t).login(), p.raw(t).login()
		holder.ask("begin")
		waiting.send(packet('Q', "select 7\x00"))
		p.await("one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
		p.reloaded(t, set(2))
		waiting.until('Z')
	})
}

func TestChangedPasswordsAndMethodsHoldForTheNextLogin(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	set := func(auth AuthType, users map[string]string) *Settings {
		return fakeSettings(f, func(s *Settings, _ *Route) { s.Auth, s.Users = auth, users })
	}
	p := startProxy(t, set(Trust, nil))
	old := p.raw(t).login()
	half := p.raw(t).send(hello("user", "app")[:10]) // its login began before
	p.reloaded(t, set(Plain, map[string]string{"app": "one"}))
	login := func(password string) string {
		return attemptPlain(t, p.raw(t), "app", "app", password)
	}
	half.send(hello("user", "app")[10:])
	half.until('R')
	half.send(packet('p', "one\x00")).until('Z')
	if got := login("wrong"); !strings.Contains(got, "28P01") {
		t.Errorf("a wrong password got %s", got)
	}
	p.reloaded(t, set(Plain, map[string]string{"app": "two"}))
	if got := login("one"); !strings.Contains(got, "28P01") {
		t.Errorf("the old password got %s", got)
	}
	p.raw(t).send(hello("user", "app"), packet('p', "two\x00")).until('Z')
	p.reloaded(t, set(ScramSHA256, map[string]string{"app": "three"}))
	if got := attemptSCRAM(t, p.raw(t), "app", "app", "two"); !strings.Contains(got, "28P01") {
		t.Errorf("the old password got %s", got)
	}
	if got := old.ask("select 7"); got != "select 7" {
		t.Errorf("a client that was there before got %q", got)
	}
}

func TestAReloadDuringALoginDoesNotAdmitToARemovedDatabase(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	edit := func(s *Settings, _ *Route) { s.Auth, s.Users = Plain, map[string]string{"app": "secret"} }
	p := startProxy(t, fakeSettings(f, edit))
	r := p.raw(t).send(hello("user", "app", "database", "app"))
	r.until('R')
	set := fakeSettings(f, edit)
	set.Route = func(string, string) (Route, bool) { return Route{}, false }
	p.reloaded(t, set)
	r.send(packet('p', "secret\x00")).refused("3D000", "no such database: app")
	if n := f.Accepted(); n != 0 {
		t.Errorf("%d connections to a server that is not configured any more", n)
	}
}

func TestAPasswordProvedBeforeADatabaseMovesProvesNothingAfter(t *testing.T) {
	t.Parallel()
	v := &vault{password: "right", hold: make(chan struct{})}
	old, fresh := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.Startup(); <-v.hold; c.Welcome(); echoQueries(c) }), pgtest.NewFake(t, v.serve)
	p := startProxy(t, passthroughSettings("127.0.0.1", old.Port(), nil))
	r := p.raw(t).send(hello("user", "app", "database", "app"), packet('p', "wrong\x00"))
	old.AwaitAccepted(t, 1) // it takes any password
	p.reloaded(t, passthroughSettings("127.0.0.1", fresh.Port(), nil))
	close(v.hold)
	r.refusedAfter("R", "08006", "the database has moved during the login: connect again")
	p.denied(t, "app", "wrong")
	p.admitted(t, "app", "right")
}

func TestAPasswordThatWaitsForADatabaseThatMovesIsNotTriedThere(t *testing.T) {
	t.Parallel()
	away := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.Startup(); c.Error("FATAL", "57P03", "starting up") })
	v := &vault{password: "right"}
	fresh := pgtest.NewFake(t, v.serve)
	p := startProxy(t, passthroughSettings("127.0.0.1", away.Port(), nil))
	waiting := p.raw(t).send(hello("user", "app", "database", "app"), packet('p', "right\x00"))
	p.await("it waits", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Waiting == 1 })
	p.reloaded(t, passthroughSettings("127.0.0.1", fresh.Port(), nil))
	waiting.refusedAfter("R", "08006", "the database has moved during the login: connect again")
	if n := v.tried("right"); n != 0 {
		t.Error("it was shown to another server")
	}
	p.admitted(t, "app", "right")
}

func TestIgnoredParametersChangeWithAReload(t *testing.T) {
	f := pgtest.NewFake(t, echo)
	p := startProxy(t, fakeSettings(f, func(s *Settings, _ *Route) { s.SessionState = StatePgBouncer }))
	p.raw(t).send(hello("user", "app", "lc_messages", "C")).refused("08P01", "unsupported startup parameter: lc_messages")
	p.reloaded(t, fakeSettings(f, func(s *Settings, _ *Route) {
		s.SessionState, s.IgnoreStartup = StatePgBouncer, []string{"lc_messages"}
	}))
	p.raw(t).send(hello("user", "app", "lc_messages", "C")).until('Z')
}

func TestReloadsUnderLoadDisturbNobody(t *testing.T) {
	s := pgtest.Shared(t)
	sized := func(n int) *Settings { return testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = n }) }
	p := startProxy(t, sized(3))
	stop := make(chan struct{})
	done := make(chan error, 4)
	for range 4 {
		c := p.call()
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				c.send(&pgproto3.Query{String: "select 7"})
				if r := c.reply(); r.err != nil || len(r.rows) != 1 {
					done <- context.Canceled
					return
				}
			}
		}()
	}
	for i := range 50 {
		p.reloaded(t, sized(1+i%5))
	}
	close(stop)
	for range 4 {
		if err := <-done; err != nil {
			t.Error("a query failed during a reload")
		}
	}
}
