package proxy

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// S32
func TestWhatAClientSetsStaysWithItAndReachesNobodyElse(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	for name, values := range map[string][2]string{
		"DateStyle": {"German, DMY", "SQL, MDY"}, "TimeZone": {"Asia/Tokyo", "Europe/Paris"}, "application_name": {"it's \\ mine", "IT'S \\ MINE"},
		"client_encoding": {"LATIN1", "UTF8"}, "standard_conforming_strings": {"off", "on"}, "IntervalStyle": {"iso_8601", "sql_standard"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := callAt(t, p.Addr), callAt(t, p.Addr)
			fresh := a.must("show " + name)
			set := func(c *caller, value string) {
				t.Helper()
				c.must(fmt.Sprintf("select set_config('%s', $$%s$$, false)", name, value))
				if c.params[name] != value {
					t.Errorf("the client was told %q", c.params[name])
				}
			}
			expect := func(who string, c *caller, want string) {
				t.Helper()
				if got := c.must("show " + name); got != want {
					t.Errorf("%s sees %q, want %q", who, got, want)
				}
			}
			set(a, values[0])
			for range 2 {
				expect("another client", b, fresh)
				expect("who has set it", a, values[0])
			}
			set(b, values[1])
			for range 2 {
				expect("the first", a, values[0])
				expect("the second", b, values[1])
			}
			a.must("begin")
			a.must(fmt.Sprintf("select set_config('%s', $$%s$$, false)", name, values[1]))
			a.must("rollback")
			expect("the other one after a rollback", b, values[1])
			expect("who has rolled back", a, values[0])
			a.must("reset " + name)
			expect("the second after a reset of the first", b, values[1])
			expect("who has reset it", a, fresh)
			c := callAt(t, p.Addr)
			expect("a new client", c, fresh)
			for _, c := range []*caller{a, b, c} {
				departures["by Terminate"](c)
			}
		})
	}
}

// S35
func TestParametersThatTheServerDoesNotReportAreTakenBack(t *testing.T) {
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 1 })
	set.Tracked = []string{"search_path", "my.setting", "work_mem"}
	p := startProxy(t, set)
	plain := p.call()
	with := p.call("search_path", "pg_catalog", "work_mem", "5MB", "my.setting", "mine")
	other := p.call("work_mem", "6MB", "my.setting", "Mine")
	const show = "select current_setting('search_path') || '|' || current_setting('work_mem') || '|' || coalesce(current_setting('my.setting', true), '')"
	for range 3 {
		for _, c := range []struct {
			client *caller
			want   string
		}{{plain, `"$user", public|4MB|`}, {with, "pg_catalog|5MB|mine"}, {other, `"$user", public|6MB|Mine`}, {with, "pg_catalog|5MB|mine"}} {
			if got := c.client.must(show); got != c.want {
				t.Errorf("the client's settings are %s, want %s", got, c.want)
			}
		}
	}
	if n := p.state().Servers; n != 1 {
		t.Errorf("there are %d server connections, want 1", n)
	}
}

// recorder serves a fake server that notes every query and obeys SET of application_name.
func recorder() (serve func(*pgtest.FakeConn), taken func() []string) {
	var mu sync.Mutex
	var queries []string
	serve = func(c *pgtest.FakeConn) {
		c.Login()
		for {
			sql := c.Query()
			mu.Lock()
			queries = append(queries, sql)
			mu.Unlock()
			if strings.HasPrefix(sql, "SET") {
				c.ParameterStatus("application_name", strings.Split(sql, "'")[1])
				c.Complete("SET")
				c.Ready('I')
				continue
			}
			c.Answer(sql)
		}
	}
	return serve, func() []string {
		mu.Lock()
		defer mu.Unlock()
		all := queries
		queries = nil
		return all
	}
}

// S33
func TestParametersAreSetOnceAndOnlyWhereTheyDiffer(t *testing.T) {
	serve, taken := recorder()
	f := pgtest.NewFake(t, serve)
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
	a, b := p.call("application_name", "a"), p.call("application_name", "b")
	for _, c := range []struct {
		client *caller
		sql    string
		want   string
	}{
		{a, "1", `SET "application_name" TO 'a'; 1`}, {a, "2", "2"}, {b, "3", `SET "application_name" TO 'b'; 3`},
		{b, "4", "4"}, {a, "5", `SET "application_name" TO 'a'; 5`},
	} {
		if got := c.client.must(c.sql); got != c.sql {
			t.Errorf("the answer to %q is %q", c.sql, got)
		}
		if got := strings.Join(taken(), " "); got != c.want {
			t.Errorf("the server was asked %s, want %s", got, c.want)
		}
	}
}

// A client whose parameters are set keeps the connection for the request that it wanted it for, however many wait.
//
// S33
func TestSettingParametersDoesNotCostTheTurn(t *testing.T) {
	serve, taken := recorder()
	f := pgtest.NewFake(t, serve)
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.Size = 1 }))
	holder := p.call()
	holder.must("hello")
	p.SetCapacity(fmt.Sprintf("127.0.0.1:%d", f.Port()), 0, 0) // nobody is served
	p.await("no server connection", func(s Snapshot) bool { return s.Servers == 0 })
	taken()
	const many = 20
	clients := make([]*caller, many)
	var want []string
	for i := range clients {
		clients[i] = p.call("application_name", fmt.Sprintf("app%d", i))
		clients[i].send(&pgproto3.Query{String: fmt.Sprint("query", i)})
		want = append(want, fmt.Sprintf(`SET "application_name" TO 'app%d';`, i), fmt.Sprint("query", i))
		p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == i+1 })
	}
	p.SetCapacity(fmt.Sprintf("127.0.0.1:%d", f.Port()), 1, 0)
	for i, c := range clients {
		if r := c.reply(); r.err != nil || r.value(0) != fmt.Sprint("query", i) {
			t.Errorf("client %d was answered by %+v", i, r)
		}
	}
	if got := taken(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the server was asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// S37, S85
func TestAReloadOfTheServerReachesNewAndLinkedClients(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	p := startProxy(t, testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 3 }))
	linked, setter := p.call(), p.call()
	linked.must("begin")
	setter.must("set timezone to 'Asia/Tokyo'")
	for _, sql := range []string{"alter system set timezone to 'Europe/Berlin'", "select pg_reload_conf()"} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// PostgreSQL tells it with the next answer after it has taken note.
	p.await("the linked client is told", func(Snapshot) bool {
		linked.must("select 1")
		return linked.params["TimeZone"] == "Europe/Berlin"
	})
	if got := linked.must("show timezone"); got != "Europe/Berlin" {
		t.Errorf("the linked client sees %s", got)
	}
	for range 2 {
		if got := setter.must("show timezone"); got != "Asia/Tokyo" {
			t.Errorf("a client that has set its own sees %s", got)
		}
	}
	// The next server connection knows better than the first what new clients begin with.
	setter.must("begin")
	another := p.call()
	another.must("begin")
	c := p.call()
	linked.must("commit")
	if told, got := c.params["TimeZone"], c.must("show timezone"); told != "Europe/Berlin" || got != told {
		t.Errorf("a new client is told %s and sees %s", told, got)
	}
}
