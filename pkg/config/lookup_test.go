package config

import "testing"

func TestLookupsResolveByDatabaseThenGlobally(t *testing.T) {
	fs := files{
		"p.ini": `[databases]
plain = host=h1
own = host=h2 auth_user=reader auth_query='select own, $1' auth_dbname=admin
forced = host=h3 user=app password=apps
readers = host=h4 user=reader password=special auth_user=reader
admin = host=h5 user=app dbname=postgres
* = host=h6
[pgbouncer]
listen_addr = 127.0.0.1
auth_file = u
auth_user = lookup
auth_query = select global, $1
`,
		"u": `"lookup" "l" "reader" "r"` + "\n" + `"reader" "r"`,
	}
	c, err := Load(Input{Args: []string{"p.ini"}, Read: fs.read})
	if err != nil {
		t.Fatal(err)
	}
	for database, want := range map[string]struct{ query, host, pool, dbname, user, password string }{
		"plain":   {"select global, $1", "h1", "plain", "plain", "lookup", "l"},
		"own":     {"select own, $1", "h5", "admin", "postgres", "reader", "r"},
		"forced":  {"select global, $1", "h3", "forced", "forced", "lookup", "l"}, // the forced user does not look up
		"readers": {"select global, $1", "h4", "readers", "readers", "reader", "special"},
		"any":     {"select global, $1", "h6", "any", "any", "lookup", "l"},
	} {
		l, ok := c.Lookup(database)
		r := l.Route
		if !ok || l.Query != want.query || r.Hosts[0] != want.host || r.Database != want.pool || r.DBName != want.dbname ||
			r.User != want.user || r.Password.Reveal() != want.password {
			t.Errorf("%s: got %q by %s on %v as %s, %v", database, l.Query, r.DBName, r.Hosts, r.User, ok)
		}
	}
	if _, ok := c.Lookup(Reserved); ok {
		t.Error("users of the console are looked up")
	}
	without, err := Load(Input{Args: []string{"p.ini", "--auth_user="}, Read: fs.read})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := without.Lookup("plain"); ok {
		t.Error("users are looked up without auth_user")
	}
}
