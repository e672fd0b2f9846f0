package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/scram"
)

// defaultQuery is PgBouncer's.
const defaultQuery = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin"

const readerPassword = "reader-secret"

// lookupServer gives a server with the usual set-up: a role without any rights that may execute one function, which
// reads what it may not. The function's own table holds further users.
func lookupServer(t *testing.T, auth pgtest.Auth) *pgtest.Server {
	t.Helper()
	s := serverAsking(t, auth, "", "")
	lookupSetups.Lock()
	defer lookupSetups.Unlock()
	if lookupSetups.done[auth] {
		return s
	}
	setUpLookups(t, s)
	if lookupSetups.done == nil {
		lookupSetups.done = map[pgtest.Auth]bool{}
	}
	lookupSetups.done[auth] = true
	return s
}

func setUpLookups(t *testing.T, s *pgtest.Server) {
	t.Helper()
	query(t, s, `create role reader login password '`+readerPassword+`';
		create schema lookup;
		create table lookup.secrets (name text primary key, secret text);
		create function lookup.users(text, out name text, out secret text) returns setof record language sql security definer
			set search_path = pg_catalog as $$
				select rolname::text, case when rolvaliduntil < now() then null else rolpassword end
				from pg_authid where rolname = $1 and rolcanlogin
				union all select s.name, s.secret from lookup.secrets s where s.name = $1 $$;
		revoke all on function lookup.users(text) from public;
		grant usage on schema lookup to reader;
		grant execute on function lookup.users(text) to reader`)
}

var lookupSetups struct {
	sync.Mutex
	done map[pgtest.Auth]bool
}

const lookupQuery = "SELECT * FROM lookup.users($1)"

func query(t *testing.T, s *pgtest.Server, sql string) [][]string {
	t.Helper()
	rows, err := s.Query(context.Background(), sql)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// lookupSettings are those of a pooler that asks the server about users.
func lookupSettings(s *pgtest.Server, auth AuthType, sql string, edit func(*Route)) *Settings {
	set := testSettings(s.Host, s.Port, nil)
	set.Auth = auth
	set.Users = map[string]string{"reader": readerPassword, "postgres": pgtest.Password}
	route := set.Route
	set.AuthRoute = func(database, user string) (Route, bool) {
		r, ok := route(database, user)
		r.User, r.Password = user, set.Users[user]
		if edit != nil {
			edit(&r)
		}
		return r, ok
	}
	set.Route = set.AuthRoute
	set.Lookup = func(database string) (Lookup, bool) {
		r, ok := set.AuthRoute(database, "reader")
		return Lookup{Route: r, Query: sql}, ok
	}
	return set
}

// login logs in by pgx and asks who the server says it is.
func (p *pooler) login(user, password string) (current string, err error) {
	p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	cfg, err := pgx.ParseConfig("postgres://" + p.Addr + "/app?sslmode=disable")
	if err != nil {
		p.t.Fatal(err)
	}
	cfg.User, cfg.Password = user, password
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close(ctx) }()
	return current, c.QueryRow(ctx, "select current_user", pgx.QueryExecModeSimpleProtocol).Scan(&current)
}

// letIn expects that a user gets in, as who it is.
func (p *pooler) letIn(t *testing.T, user, password string) {
	t.Helper()
	if who, err := p.login(user, password); err != nil || who != user {
		t.Errorf("%q with the right password: is %q, %v", user, who, err)
	}
}

// keptOut expects that a user is told what everybody is told.
func (p *pooler) keptOut(t *testing.T, user, password string) {
	t.Helper()
	_, err := p.login(user, password)
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "28P01" || e.Message != `password authentication failed for user "`+user+`"` {
		t.Errorf("%q with a wrong password: %v", user, err)
	}
}

// statsOf are those of a user's pool.
func (p *pooler) statsOf(user string) pool.Stats { return statsOf(p.state(), user) }

func statsOf(s Snapshot, user string) (st pool.Stats) {
	for _, pl := range s.Pools {
		if pl.Key.User == user {
			st = pl.Stats
		}
	}
	return st
}

// S68
func TestUsersAreFoundByAuthQuery(t *testing.T) {
	pgtest.CheckLeaks(t)
	for _, server := range []pgtest.Auth{pgtest.SCRAM, pgtest.MD5, pgtest.Trust} {
		for name, auth := range map[string]AuthType{"md5": MD5, "scram-sha-256": ScramSHA256, "plain": Plain} {
			t.Run("clients by "+name+", server by "+string(server), func(t *testing.T) {
				s := lookupServer(t, server)
				query(t, s, "drop role if exists alice; create role alice login password 'alices-secret'")
				p := startProxy(t, lookupSettings(s, auth, lookupQuery, nil))
				if auth == ScramSHA256 && server == pgtest.MD5 {
					p.keptOut(t, "alice", "alices-secret")
					if !strings.Contains(p.logs.String(), "the stored secret is an md5 hash, which cannot prove SCRAM-SHA-256") {
						t.Error("the log does not say why")
					}
					return
				}
				p.letIn(t, "alice", "alices-secret")
				p.keptOut(t, "alice", "wrong-secret")
				p.keptOut(t, "nobody", "alices-secret")
				p.letIn(t, "reader", readerPassword) // is in the user list
				for _, reason := range []string{`reason="wrong password"`, `reason="no such user"`} {
					if !strings.Contains(p.logs.String(), reason) {
						t.Errorf("the log does not say %s", reason)
					}
				}

				// A password set anew works at once, for the server too, and the old one does not.
				query(t, s, "alter role alice password 'newer-secret'")
				p.letIn(t, "alice", "newer-secret")
				p.keptOut(t, "alice", "alices-secret")
				query(t, s, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'alice'")
				p.await("alice's server connection is gone", func(s Snapshot) bool {
					return statsOf(s, "alice").Idle == 0
				})
				p.letIn(t, "alice", "newer-secret")

				for _, secret := range []string{"alices-secret", "newer-secret", "wrong-secret", readerPassword, "SCRAM-SHA-256$"} {
					if strings.Contains(p.logs.String(), secret) {
						t.Errorf("%s is in the log", secret)
					}
				}
			})
		}
	}
}

func TestTheDefaultAuthQueryKnowsRolesThatMayLogIn(t *testing.T) {
	t.Parallel()
	s := serverAsking(t, pgtest.SCRAM, "able", "right")
	query(t, s, `drop role if exists expired, unable, bare;
		create role expired login password 'right' valid until '2001-01-01';
		create role unable password 'right'; create role bare login`)
	set := lookupSettings(s, MD5, defaultQuery, nil)
	lookup := set.Lookup
	set.Lookup = func(database string) (Lookup, bool) {
		l, ok := lookup(database)
		l.Route, _ = set.AuthRoute(database, "postgres")
		return l, ok
	}
	p := startProxy(t, set)
	p.letIn(t, "able", "right")
	for user, reason := range map[string]string{
		"expired": "the user has no password, or it has expired", "unable": "no such user", "bare": "the user has no password, or it has expired",
	} {
		p.keptOut(t, user, "right")
		if !strings.Contains(p.logs.String(), fmt.Sprintf("reason=%q database=app user=%s", reason, user)) && !strings.Contains(p.logs.String(), reason) {
			t.Errorf("%s: the log does not say that %s", user, reason)
		}
	}
}

// S67
func TestAnswersOfAuthQueryThatAreWrong(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := lookupServer(t, pgtest.Trust)
	query(t, s, "drop table if exists locked_away; create table locked_away (name text, secret text)")
	for sql, says := range map[string]string{
		"select $1::text":                         "it returns 1 columns; allowed are 2",
		"select $1::text, 'x', 'y'":               "it returns 3 columns; allowed are 2",
		"create temp table lookup_x as select $1": "it returns no columns",
		"set app.x = 'x' -- $1":                   "auth_query must use $1",
		"select from pg_class where relname = $1": "it returns 0 columns; allowed are 2",
		"-- $1":                              "auth_query must use $1",
		"copy (select 1, 2) to stdout -- $1": "auth_query must use $1",
		"select $1::text, generate_series(1, 1e6)::text": "it returns more than one row",
		"select $1::text, decode('ff00', 'hex')":         "its column 2 has the type with OID 17",
		"select $1::text, 42":                            "its column 2 has the type with OID 23",
		"select $1::text, repeat('x', 5000000)":          "bytes in one row; allowed are 32768",
		"select null::text, $1::text":                    "the user's name in its first column is NULL",
		"select 'someone else', $1::text":                "is not the one asked for",
		"select * from missing.users($1)":                "(SQLSTATE 3F000): create it in the database",
		"select * from users_missing($1)":                "(SQLSTATE 42883): create it in the database",
		"select * from locked_away where name = $1":      "(SQLSTATE 42501): auth_user needs the right to read that",
		"select name from":                               "(SQLSTATE 42601): auth_query must return",
		"select 1; select $1":                            "(SQLSTATE 42601)",
		"select rolname, 'x' from pg_roles":              "auth_query must use $1",
	} {
		t.Run(sql, func(t *testing.T) {
			p := startProxy(t, lookupSettings(s, ScramSHA256, sql, nil))
			p.keptOut(t, "alice", "x")
			p.letIn(t, "reader", readerPassword)
			if !strings.Contains(p.logs.String(), says) {
				t.Errorf("the log does not say %q", says)
			}
			st := p.await("idle", func(s Snapshot) bool { return s.Clients == 0 && s.BytesLent == 0 }).Pools[0].Stats
			if st.Opened != 1 || st.Idle != 1 {
				t.Errorf("the server connection was not kept: %+v", st)
			}
		})
	}
}

func TestSecretsOfAllFormsAreProved(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.Trust)
	for form, secret := range stored() {
		for name, auth := range map[string]AuthType{"md5": MD5, "plain": Plain, "scram-sha-256": ScramSHA256} {
			t.Run(form+" by "+name, func(t *testing.T) {
				query(t, s, "drop role if exists app; create role app login")
				set := lookupSettings(s, auth, "select $1::text, '"+secret+"'", nil)
				p := startProxy(t, set)
				if auth == ScramSHA256 && form == "an md5 hash" {
					p.keptOut(t, "app", "secret")
					return
				}
				p.letIn(t, "app", "secret")
				p.keptOut(t, "app", "wrong")
				if form != "in clear" {
					p.keptOut(t, "app", secret)
				}
			})
		}
	}
}

func TestUserNamesCannotSpeakSQL(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.Trust)
	odd := `o"dd'; drop role reader; -- \x $1 ü`
	query(t, s, `drop role if exists "o""dd'; drop role reader; -- \x $1 ü"; create role "o""dd'; drop role reader; -- \x $1 ü" login password 'right'`)
	p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, nil))
	p.letIn(t, odd, "right")
	p.keptOut(t, odd, "wrong")
	for _, user := range []string{
		"' or true --", `\`, `"`, "$1", "$$", "%s", ";", "x'::regclass--", "\xff\xfe", "a\xc3", strings.Repeat("x", 128), strings.Repeat("é", 64),
	} {
		if got := p.attempt(t, user); !strings.HasPrefix(got, "28P01 ") {
			t.Errorf("%q got %q", user, got)
		}
	}
	if got := p.attempt(t, strings.Repeat("x", 9900)); !strings.HasPrefix(got, "08P01 username too long") {
		t.Errorf("a name of 10 kB got %q", got)
	}
	p.letIn(t, "reader", readerPassword)
	if log := p.logs.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("names of clients are taken for mistakes of the operator:\n%s", log)
	}
}

// attempt plays a SCRAM login whose password is wrong, and returns what it was told.
func (p *pooler) attempt(t *testing.T, user string) string {
	t.Helper()
	got := attemptSCRAM(t, p.raw(t), user, "app", "wrong")
	_, told, _ := strings.Cut(got, "FATAL ")
	return told
}

// CVE-2025-12819, M22, S71
func TestNobodyCanHijackAuthQuery(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.Trust) // so that only the pooler keeps anybody out
	query(t, s, `drop role if exists victim; create role victim login password 'right';
		drop schema if exists evil cascade; create schema evil; grant all on schema evil to public;
		create table evil.pg_authid (rolname text, rolpassword text, rolvaliduntil timestamptz, rolcanlogin bool);
		grant all on evil.pg_authid to public;
		insert into evil.pg_authid values ('victim', 'hijacked', null, true)`)
	set := lookupSettings(s, MD5, defaultQuery, func(r *Route) { r.Pool.Size = 1 })
	set.Tracked = []string{"search_path"}
	set.SessionState = StatePgBouncer // who leaves things behind is not kept at the only connection
	set.Lookup = func(database string) (Lookup, bool) {
		r, ok := set.AuthRoute(database, "postgres")
		return Lookup{Route: r, Query: defaultQuery}, ok
	}
	p := startProxy(t, set)
	// By the startup packet of the one who logs in.
	victim := func(password string) error {
		ctx, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		c, err := pgx.Connect(ctx, "postgres://victim:"+password+"@"+p.Addr+"/app?sslmode=disable&search_path=evil,pg_catalog")
		if err == nil {
			_ = c.Close(ctx)
		}
		return err
	}
	if err := victim("right"); err != nil {
		t.Errorf("the right password: %v", err)
	}
	if err := victim("hijacked"); err == nil {
		t.Error("search_path in the startup packet reached auth_query")
	}
	// By a client of auth_user's own pool, who leaves things behind on the only connection.
	owner := p.connect(func(c *pgx.ConnConfig) {
		c.User, c.Password = "postgres", pgtest.Password
		c.RuntimeParams["search_path"] = "evil, pg_catalog"
	})
	for _, sql := range []string{
		"set role reader", "set datestyle = 'German'",
		"reset role; create temp table pg_authid as select * from evil.pg_authid; set role reader",
		"prepare x as select 1",
	} {
		if _, err := owner.Exec(context.Background(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if err := victim("hijacked"); err == nil {
			t.Errorf("%s: auth_query was hijacked", sql)
		}
		if err := victim("right"); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for name, want := range map[string]string{"search_path": "evil, pg_catalog", "datestyle": "German, DMY"} {
		var got string
		if err := owner.QueryRow(context.Background(), "show "+name).Scan(&got); err != nil || got != want {
			t.Errorf("the client's own %s is %q, %v", name, got, err)
		}
	}
}

func TestAuthUserMayShareThePoolOfItsClients(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.SCRAM)
	query(t, s, "drop role if exists guest; create role guest login password 'right'")
	for _, mode := range []pool.Mode{pool.Session, pool.Transaction} {
		t.Run(mode.String(), func(t *testing.T) {
			set := lookupSettings(s, ScramSHA256, lookupQuery, nil)
			authRoute := set.AuthRoute
			set.AuthRoute = func(database, user string) (Route, bool) {
				r, ok := authRoute(database, user)
				r.Pool.Size, r.Pool.Mode = 1, mode
				if mode == pool.Session {
					r.Pool.Reset, r.ResetQuery = true, "discard all"
				}
				return r, ok
			}
			set.Route = func(database, _ string) (Route, bool) { return set.AuthRoute(database, "reader") }
			p := startProxy(t, set)
			for range 3 {
				if who, err := p.login("guest", "right"); who != "reader" || err != nil {
					t.Fatalf("got in as %q, %v", who, err)
				}
				p.keptOut(t, "guest", "wrong")
			}
			if n := len(p.state().Pools); n != 1 {
				t.Errorf("%d pools", n)
			}
		})
	}
}

func TestAuthUserKeepsItsPoolWhereAnotherUserIsForced(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.SCRAM)
	query(t, s, "drop role if exists caller, forced; create role caller login password 'right'; create role forced login password 'forced'")
	set := lookupSettings(s, ScramSHA256, lookupQuery, nil)
	set.Users["forced"] = "forced"
	authRoute := set.AuthRoute
	set.Route = func(database, _ string) (Route, bool) { return authRoute(database, "forced") }
	p := startProxy(t, set)
	for range 2 {
		if who, err := p.login("caller", "right"); who != "forced" || err != nil {
			t.Fatalf("got in as %q, %v", who, err)
		}
		next := *set
		p.Reload(&next) // finds auth_user's pool again
	}
	if st := p.statsOf("reader"); st.Opened != 1 {
		t.Errorf("auth_user's pool was not kept: %+v", st)
	}
}

func TestAnAuthUserWhoCannotLogInIsTheOperatorsProblem(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.SCRAM)
	for name, c := range map[string]struct{ password, says string }{
		"no password":    {"", "server asks for SCRAM-SHA-256 and no password is known"},
		"a hash":         {"md5" + strings.Repeat("0", 32), "server asks for SCRAM-SHA-256 and only an md5 hash is known"},
		"a wrong one":    {"wrong-secret", "password authentication failed for user"},
		"another's keys": {stored()["a SCRAM verifier"], "server asks for SCRAM-SHA-256 and no password is known"},
	} {
		t.Run(name, func(t *testing.T) {
			set := lookupSettings(s, ScramSHA256, lookupQuery, nil)
			set.Users["reader"] = c.password
			p := startProxy(t, set)
			_, err := p.login("alice", "right")
			var e *pgconn.PgError
			if !errors.As(err, &e) || e.Code != "08006" || e.Message != cannotLookUp {
				t.Errorf("the client was told %v", err)
			}
			if log := p.logs.String(); !strings.Contains(log, c.says) || !strings.Contains(log, "auth_user cannot log in") {
				t.Errorf("the log does not say %q", c.says)
			}
		})
	}
}

func TestTrustLetsInWhomAuthQueryKnows(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.Trust)
	query(t, s, "drop role if exists trusted, passwordless; create role trusted login password 'right'; create role passwordless login")
	p := startProxy(t, lookupSettings(s, Trust, lookupQuery, nil))
	p.letIn(t, "trusted", "whatever")
	p.letIn(t, "passwordless", "")
	p.keptOut(t, "nobody", "whatever")
}

func TestAuthQueryWaitsForAConnectionLikeEverybody(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := lookupServer(t, pgtest.Trust)
	set := lookupSettings(s, ScramSHA256, lookupQuery, func(r *Route) {
		r.Pool.Mode, r.Pool.Size, r.Pool.QueryWaitTimeout = pool.Session, 1, 300*time.Millisecond
	})
	set.MaxClients = 1 // it is no client
	p := startProxy(t, set)
	query(t, s, "drop role if exists waiter; create role waiter login password 'right'")
	p.letIn(t, "waiter", "right")
	p.await("nobody is left", func(s Snapshot) bool { return s.Clients == 0 })
	holder := p.connect(func(c *pgx.ConnConfig) { c.User, c.Password = "reader", readerPassword })
	if _, err := holder.Exec(context.Background(), "select 1"); err != nil {
		t.Fatal(err)
	}
	_, err := p.login("waiter", "right")
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "53300" || !strings.HasPrefix(e.Message, "query_wait_timeout: ") {
		t.Errorf("got %v", err)
	}
	_ = holder.Close(context.Background())
	p.await("nobody is left", func(s Snapshot) bool { return s.Clients == 0 })
	p.letIn(t, "waiter", "right")
}

func TestAProofThatComesLateDoesNotReplaceANewerSecret(t *testing.T) {
	t.Parallel()
	s := lookupServer(t, pgtest.SCRAM)
	query(t, s, "drop role if exists tardy; create role tardy login password 'right'")
	p := startProxy(t, lookupSettings(s, ScramSHA256, lookupQuery, nil))
	late := p.raw(t).send(hello("user", "tardy", "database", "app"))
	late.until('R')
	query(t, s, "alter role tardy password 'newer'")
	p.letIn(t, "tardy", "newer")

	c := scram.NewClient("right", []byte("eighteen bytes long"))
	first := c.First()
	late.send(packet('p', scram.Mechanism+"\x00\x00\x00\x00"+string(rune(len(first)))+string(first)))
	final, err := c.Challenge(late.until('R').body[4:])
	if err != nil {
		t.Fatal(err)
	}
	late.send(packet('p', string(final))).until('Z')
	query(t, s, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tardy'")
	p.await("the server connection is gone", func(s Snapshot) bool { return statsOf(s, "tardy").Idle == 0 })
	if got := late.ask("select current_user"); got != "tardy" {
		t.Errorf("got %q", got)
	}
}
