package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Who says what about a pool: user before database before global, as far as each level has a say.
func TestUserGoesBeforeDatabaseBeforeGlobal(t *testing.T) {
	type row struct {
		what                  string
		global, database      string // settings at these levels, "" where there is none
		user                  string
		of                    func(Route) any
		byGlobal, byDB, byUse any
	}
	for _, r := range []row{
		{"mode", "pool_mode: statement", "pool_mode: session", "pool_mode: transaction",
			func(r Route) any { return r.Mode }, ModeStatement, ModeSession, ModeTransaction},
		{"size", "default_pool_size: 11", "pool_size: 12", "pool_size: 0",
			func(r Route) any { return r.Size }, 11, 12, 0},
		{"min", "min_pool_size: 1", "min_pool_size: 2", "",
			func(r Route) any { return r.MinSize }, 1, 2, nil},
		{"reserve", "reserve_pool_size: 1", "reserve_pool_size: 2", "reserve_pool_size: 3",
			func(r Route) any { return r.ReserveSize }, 1, 2, 3},
		{"lifetime", "server_lifetime: 1", "server_lifetime: 0", "",
			func(r Route) any { return r.ServerLifetime }, time.Second, time.Duration(0), nil},
		{"wait", "query_wait_timeout: 1", "query_wait_timeout: 2", "query_wait_timeout: 0",
			func(r Route) any { return r.QueryWait }, time.Second, 2 * time.Second, time.Duration(0)},
		{"query", "query_timeout: 1", "", "query_timeout: 3",
			func(r Route) any { return r.Query }, time.Second, nil, 3 * time.Second},
		{"idle transaction", "idle_transaction_timeout: 1", "", "idle_transaction_timeout: 3",
			func(r Route) any { return r.IdleTransaction }, time.Second, nil, 3 * time.Second},
		{"transaction", "transaction_timeout: 1", "", "transaction_timeout: 3",
			func(r Route) any { return r.Transaction }, time.Second, nil, 3 * time.Second},
		{"idle", "client_idle_timeout: 1", "", "client_idle_timeout: 3",
			func(r Route) any { return r.ClientIdle }, time.Second, nil, 3 * time.Second},
		{"database's servers", "max_db_connections: 1", "max_db_connections: 2", "",
			func(r Route) any { return r.MaxDatabaseServers }, 1, 2, nil},
		{"database's clients", "max_db_client_connections: 1", "max_db_client_connections: 2", "",
			func(r Route) any { return r.MaxDatabaseClients }, 1, 2, nil},
		{"user's servers", "max_user_connections: 1", "", "max_user_connections: 3",
			func(r Route) any { return r.MaxUserServers }, 1, nil, 3},
		{"user's clients", "max_user_client_connections: 1", "", "max_user_client_connections: 3",
			func(r Route) any { return r.MaxUserClients }, 1, nil, 3},
	} {
		for levels := range 4 {
			withDB, withUser := levels&1 != 0 && r.database != "", levels&2 != 0 && r.user != ""
			want := r.byGlobal
			database, user := "", ""
			if withDB {
				want, database = r.byDB, "\n  "+r.database
			}
			if withUser {
				want, user = r.byUse, "\n  "+r.user
			}
			c := mustLoad(t, r.global+"\ndatabases:\n- name: d\n  host: h"+database+"\nusers:\n- name: u"+user+"\n- name: other\n  pool_size: 99\n")
			route, ok := c.Route("d", "u")
			if got := r.of(route); !ok || got != want {
				t.Errorf("%s with global, database %v, user %v: %v, want %v", r.what, withDB, withUser, got, want)
			}
		}
	}
}

func TestAForcedUserOwnsThePoolButNotTheClient(t *testing.T) {
	c := mustLoad(t, `
databases: [{name: d, host: h, user: owner, password: secret}]
users:
- {name: owner, pool_mode: session, pool_size: 1, max_user_connections: 2, max_user_client_connections: 3, query_wait_timeout: 4}
- {name: login, pool_mode: statement, pool_size: 11, max_user_connections: 12, max_user_client_connections: 13, query_wait_timeout: 14}
`)
	r, ok := c.Route("d", "login")
	if !ok || r.User != "owner" || r.Password.Reveal() != "secret" {
		t.Fatalf("pool of %q, password %q", r.User, r.Password.Reveal())
	}
	got := fmt.Sprintf("%v %v %v %v %v", r.Mode, r.Size, r.MaxUserServers, r.MaxUserClients, r.QueryWait)
	if want := "session 1 2 13 4s"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTheTemplateServesOtherNames(t *testing.T) {
	c := mustLoad(t, `
databases:
- {name: "*", host: any}
- {name: App.One, host: one, dbname: real}
- {name: app.one, host: two}
`)
	for _, w := range []struct{ name, host, dbname string }{
		{"App.One", "one", "real"},
		{"app.one", "two", "app.one"},
		{"APP.ONE", "any", "APP.ONE"},
		{"x", "any", "x"},
		{"*", "", ""},
		{"", "", ""},
		{"pgbouncer", "", ""},
	} {
		r, ok := c.Route(w.name, "u")
		if !ok {
			if w.host != "" {
				t.Errorf("%q is unknown", w.name)
			}
			continue
		}
		if r.Hosts[0] != w.host || r.DBName != w.dbname || r.Database != w.name {
			t.Errorf("%q goes to %s/%s as %s, want %s/%s", w.name, r.Hosts[0], r.DBName, r.Database, w.host, w.dbname)
		}
	}
	if _, ok := mustLoad(t, "databases: [{name: a, host: h}]").Route("b", "u"); ok {
		t.Error("without a template, any name is known")
	}
}

func TestADatabaseWithoutHostIsReachedThroughTheSocketDirectory(t *testing.T) {
	c := mustLoad(t, "unix_socket_dir: /run/pg\ndatabases: [{name: a}]")
	if r, _ := c.Route("a", "u"); len(r.Hosts) != 1 || r.Hosts[0] != "/run/pg" || r.Port != 5432 {
		t.Errorf("got %v %d", r.Hosts, r.Port)
	}
}

func TestMinimumsAreCappedAtTheSizeOfAnotherLevel(t *testing.T) {
	c := mustLoad(t, "min_pool_size: 10\ndatabases: [{name: a, host: h, pool_size: 4}, {name: b, host: h, pool_size: 0}]")
	if r, _ := c.Route("a", "u"); r.MinSize != 4 {
		t.Errorf("min of a is %d, want 4", r.MinSize)
	}
	if r, _ := c.Route("b", "u"); r.MinSize != 10 {
		t.Errorf("min of the unlimited b is %d, want 10", r.MinSize)
	}
}

func TestTheResetQueryRunsInSessionModeOrAlways(t *testing.T) {
	for text, want := range map[string]string{
		"pool_mode: session":                                         "DISCARD ALL",
		"pool_mode: transaction":                                     "",
		"pool_mode: statement\nserver_reset_query_always: 1":         "DISCARD ALL",
		"pool_mode: session\nserver_reset_query: ":                   "",
		"pool_mode: session\nserver_reset_query: select pg_reload()": "select pg_reload()",
	} {
		if r, _ := mustLoad(t, text+"\ndatabases: [{name: a, host: h}]").Route("a", "u"); r.ResetQuery != want {
			t.Errorf("%s: %q, want %q", text, r.ResetQuery, want)
		}
	}
}

func TestPasswordsComeFromTheEntryElseFromTheUserlist(t *testing.T) {
	c, err := Load(Input{Args: []string{"c.yaml"}, Read: files{
		"c.yaml": "auth_type: plain\nauth_file: u\ndatabases: [{name: a, host: h, user: f, password: own}, {name: b, host: h, user: f}, {name: c, host: h}]",
		"u":      `"f" "listed"` + "\n" + `"g" "other"`,
	}.read})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct{ database, user, want string }{{"a", "g", "own"}, {"b", "g", "listed"}, {"c", "g", "other"}, {"c", "nobody", ""}} {
		if r, _ := c.Route(w.database, w.user); r.Password.Reveal() != w.want {
			t.Errorf("%s for %s: %q, want %q", w.database, w.user, r.Password.Reveal(), w.want)
		}
	}
}

func mustLoad(t *testing.T, yaml string) *Config {
	t.Helper()
	c, err := Load(Input{Args: []string{"c.yaml"}, Read: files{"c.yaml": strings.TrimLeft(yaml, "\n")}.read})
	if err != nil {
		t.Fatalf("%v in:\n%s", err, yaml)
	}
	return c
}
