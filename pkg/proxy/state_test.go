package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pool"
)

// statePooler is a pooler in transaction mode with few server connections.
func statePooler(t *testing.T, size int, edit func(*Settings)) *pooler {
	t.Helper()
	return postgresWith(t, func(s *Settings, r *Route) {
		r.Pool.Size = size
		if edit != nil {
			edit(s)
		}
	})
}

func (p *pooler) pinned() int { return p.state().Pools[0].Pinned }

// awaitPinned waits until so many clients keep their server connection, and nobody is asked any more.
func (p *pooler) awaitPinned(n int) {
	p.t.Helper()
	p.await(fmt.Sprint(n, " clients are pinned"), func(s Snapshot) bool {
		return s.Pools[0].Pinned == n && s.Pools[0].Stats.Active == n
	})
}

func TestAnyParameterThatAClientSetsStaysWithItAndReachesNobodyElse(t *testing.T) {
	for _, name := range []string{"work_mem", "statement_timeout", "search_path", "enable_seqscan", "default_transaction_read_only", "role", "lock_timeout"} {
		t.Run(name, func(t *testing.T) {
			values := map[string][2]string{
				"work_mem": {"1MB", "2MB"}, "statement_timeout": {"1min", "2min"}, "search_path": {`"$user", "a'b", pg_catalog`, "pg_catalog"},
				"enable_seqscan": {"off", "on"}, "default_transaction_read_only": {"on", "off"}, "role": {"pg_monitor", "pg_read_all_data"}, "lock_timeout": {"1s", "2s"},
			}[name]
			p := statePooler(t, 1, nil)
			a, b := p.call(), p.call()
			fresh := a.must("show " + name)
			set := func(c *caller, value string, local string) {
				t.Helper()
				c.must(fmt.Sprintf("select set_config('%s', $$%s$$, %s)", name, value, local))
			}
			expect := func(who string, c *caller, want string) {
				t.Helper()
				if got := c.must("show " + name); got != want {
					t.Errorf("%s sees %q, want %q", who, got, want)
				}
			}
			set(a, values[0], "false")
			for range 2 {
				expect("another client", b, fresh)
				expect("who has set it", a, values[0])
			}
			set(b, values[1], "false")
			for range 2 {
				expect("the first", a, values[0])
				expect("the second", b, values[1])
			}
			a.must("begin")
			set(a, values[1], "false")
			expect("who is in the transaction", a, values[1])
			a.must("rollback")
			expect("the other one after a rollback", b, values[1])
			expect("who has rolled back", a, values[0])
			a.must("begin")
			set(a, values[1], "true")
			a.must("commit")
			expect("who has set it for a transaction", a, values[0])
			a.must("begin; savepoint x; reset " + name + "; rollback to x; commit")
			expect("who has taken back a reset", a, values[0])
			a.must("reset " + name)
			expect("the second after a reset of the first", b, values[1])
			expect("who has reset it", a, fresh)
			b.must("reset all; reset role")
			expect("who has reset all", b, fresh)
			if n := p.pinned(); n != 0 {
				t.Errorf("%d clients are pinned", n)
			}
			c := p.call()
			expect("a new client", c, fresh)
		})
	}
}

func TestParametersAreReadFromTheServerHoweverTheyWereSet(t *testing.T) {
	for how, set := range map[string][]string{
		"SET":                     {"set work_mem = '3MB'"},
		"SET SESSION in comments": {"/* x */ set /* y */ session -- z\n work_mem to '3MB'"},
		"in a batch":              {"select 1; set work_mem = '3MB'; select 2"},
		"DO":                      {"do $$begin set work_mem = '3MB'; end$$"},
		"a function":              {"do $$begin perform set_config('work_mem', '3' || 'MB', false); end$$"},
		"a transaction":           {"begin", "savepoint a", "set work_mem = '9MB'", "rollback to a", "set work_mem = '3MB'", "commit"},
		"a name that is computed": {"select set_config('work' || '_mem', '3MB', false)"},
		"prepared":                {"prepare p as select set_config('work_mem', $1, false)", "execute p('3MB')", "deallocate p"},
	} {
		t.Run(how, func(t *testing.T) {
			p := statePooler(t, 1, nil)
			a := p.call()
			for _, sql := range set {
				a.must(sql)
			}
			if how == "a name that is computed" { // nobody else can have the only connection
				p.awaitPinned(1)
				a.send(&pgproto3.Terminate{})
				if got := p.call().must("show work_mem"); got != "4MB" {
					t.Errorf("the next client has %s", got)
				}
				return
			}
			b := p.call()
			for range 2 {
				if got := b.must("show work_mem"); got != "4MB" {
					t.Errorf("another client has %s", got)
				}
				if got := a.must("show work_mem"); got != "3MB" {
					t.Errorf("the client has %s", got)
				}
			}
		})
	}
}

func TestACustomParameterIsNobodyElses(t *testing.T) {
	const look = "select coalesce(current_setting('app.tenant', true), 'NULL')"
	for how, set := range map[string]string{
		"SET": "set app.tenant = 'a'", "set_config": "select set_config('app.tenant', 'a', false)", "DO": "do $$begin set app.tenant = 'a'; end$$",
	} {
		t.Run(how, func(t *testing.T) {
			p := statePooler(t, 2, nil)
			a, b := p.call(), p.call()
			a.must(set)
			for range 3 {
				if got := b.must(look); got != "NULL" {
					t.Errorf("another client sees %q", got)
				}
				if got := a.must(look); got != "a" {
					t.Errorf("the client sees %q", got)
				}
			}
			b.must("set app.tenant = 'b'")
			for range 3 {
				if got := a.must(look) + b.must(look); got != "ab" {
					t.Errorf("the clients see %q", got)
				}
			}
			a.must("reset app.tenant")
			if got := a.must(look); got != "" {
				t.Errorf("after a reset: %q", got)
			}
			c := p.call()
			if got := c.must(look); got != "NULL" {
				t.Errorf("a new client sees %q", got)
			}
		})
	}
	t.Run("SET LOCAL", func(t *testing.T) {
		p := statePooler(t, 1, nil)
		a := p.call()
		a.must("begin; set local app.tenant = 'a'; commit")
		if got := a.must(look); got != "" {
			t.Errorf("afterwards: %q", got)
		}
		probes := p.state().Pools[0].Counts.Probes
		a.must("begin; set local app.tenant = 'b'; commit")
		if more := p.state().Pools[0].Counts.Probes - probes; more != 0 {
			t.Errorf("%d questions for what is known", more)
		}
		if got := p.call().must(look); got != "NULL" {
			t.Errorf("a new client sees %q", got)
		}
	})
	t.Run("who leaves in between", func(t *testing.T) {
		p := statePooler(t, 1, nil)
		for _, leave := range departures {
			a := p.call()
			a.must("begin")
			a.must("set app.tenant = 'a'")
			leave(a)
			if got := p.call().must(look); got != "NULL" {
				t.Errorf("a new client sees %q", got)
			}
		}
	})
}

func TestObjectsOfASessionKeepTheClientAtItsServerConnection(t *testing.T) {
	for name, c := range map[string]struct{ make, use, drop, reason string }{
		"a temporary table":            {"create temp table mine as select 5 as a", "select a from mine", "drop table mine", "temporary_table"},
		"INTO TEMP":                    {"select 5 as a into temp mine", "select a from mine", "drop table mine", "temporary_table"},
		"a temporary table by DO":      {"do $$begin create temp table mine as select 5 as a; end$$", "select a from mine", "drop table mine", "temporary_table"},
		"a function in pg_temp":        {"create function pg_temp.f() returns int language sql as 'select 5'", "select pg_temp.f()", "drop function pg_temp.f()", "temporary_table"},
		"a lock":                       {"select pg_advisory_lock(42)", "select count(*) + 4 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", "select pg_advisory_unlock(42)", "advisory_lock"},
		"a lock by DO":                 {"do $$begin perform pg_advisory_lock(42); end$$", "select count(*) + 4 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", "select pg_advisory_unlock_all()", "advisory_lock"},
		"a cursor WITH HOLD":           {"declare c scroll cursor with hold for select 5", "fetch first from c", "close c", "held_cursor"},
		"PREPARE":                      {"prepare p as select 5", "execute p", "deallocate p", "prepared"},
		"LISTEN":                       {"listen c", "select count(*) + 4 from pg_listening_channels()", "unlisten *", "listen"},
		"DISCARD ALL ends it":          {"create temp table mine as select 5 as a", "select a from mine", "discard all", "temporary_table"},
		"it was made in a transaction": {"begin; savepoint a; create temp table mine as select 5 as a; release a; commit", "select a from mine", "drop table mine", "temporary_table"},
	} {
		t.Run(name, func(t *testing.T) {
			p := statePooler(t, 2, nil)
			a, b := p.call(), p.call()
			a.must(c.make)
			p.awaitPinned(1)
			for range 3 {
				undisturbed(t, b)
				if got := a.must(c.use); got != "5" {
					t.Errorf("the client got %q", got)
				}
			}
			if log := p.logs.String(); !strings.Contains(log, "reasons="+c.reason) {
				t.Errorf("the log does not say why: %s", log)
			}
			a.must(c.drop)
			p.await("the client gave it back", func(s Snapshot) bool { return s.Pools[0].Pinned == 0 && s.Pools[0].Stats.Idle == 2 })
			undisturbed(t, a)
		})
	}
}

func TestWhatIsGoneAtTheEndOfTheTransactionKeepsNobody(t *testing.T) {
	p := statePooler(t, 1, nil)
	a, b := p.call(), p.call()
	for _, sql := range []string{
		"create temp table mine (a int) on commit drop",
		"begin; create temp table mine (a int); rollback",
		"select pg_advisory_lock(1); select pg_advisory_unlock(1)",
		"begin; declare c cursor for select 1; commit",
		"select pg_advisory_xact_lock(1)",
		"insert into pg_temp.nothing values (1)",
		"listen x; unlisten x",
	} {
		a.ask(sql)
		undisturbed(t, b)
		if n := p.pinned(); n != 0 {
			t.Errorf("%s: %d clients are pinned", sql, n)
		}
	}
	if log := p.logs.String(); strings.Contains(log, "keeps its server connection") {
		t.Errorf("it was logged: %s", log)
	}
}

func TestCleanStatementsCostNoQuestion(t *testing.T) {
	p := statePooler(t, 1, nil)
	a := p.call()
	for _, sql := range []string{
		"select 1", "begin", "select count(*), now() from pg_class", "commit", "set timezone = 'UTC'", "reset timezone",
		"set local work_mem = '1MB'", "insert into pg_temp_x (a) values (1)", "select temp from x",
	} {
		a.ask(sql)
	}
	if n := p.state().Pools[0].Counts.Probes; n != 0 {
		t.Errorf("%d questions", n)
	}
}

func TestWhatAPinnedClientLeavesIsCleanedAway(t *testing.T) {
	for name, leaves := range map[string]string{
		"a temporary table": "create temp table mine as select 5 as a", "a lock": "select pg_advisory_lock(43)", "LISTEN": "listen c",
		"a cursor": "declare c cursor with hold for select 1", "PREPARE": "prepare p as select 5", "LOAD": "load 'plpgsql'",
		"in a transaction":      "begin; select pg_advisory_lock(43); create temp table mine (a int)",
		"another authorization": "set session authorization pg_monitor",
	} {
		for how, leave := range departures {
			t.Run(name+" "+how, func(t *testing.T) {
				p := statePooler(t, 1, nil)
				a := p.call()
				a.must(leaves)
				leave(a)
				b := p.call()
				for _, sql := range []string{
					"select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
					"select count(*) from pg_class where relnamespace = pg_my_temp_schema()",
					"select count(*) from pg_prepared_statements", "select count(*) from pg_cursors where is_holdable",
					"select count(*) from pg_listening_channels()", "select count(*) from (select 1) x where session_user <> 'postgres'",
				} {
					if got := b.must(sql); got != "0" {
						t.Errorf("%s: %s", sql, got)
					}
				}
				if n := p.pinned(); n != 0 {
					t.Errorf("%d clients are pinned", n)
				}
			})
		}
	}
}

func TestTooManyPinnedClientsAreRefusedBeforeTheServerIsAsked(t *testing.T) {
	p := statePooler(t, 3, nil)
	refused := func(r reply, status byte) {
		t.Helper()
		if r.err == nil || r.err.Code != "53400" || !strings.Contains(r.err.Message, "2 of a pool of 3") || r.status != status {
			t.Errorf("got %+v, status %q", r.err, r.status)
		}
	}
	a, b, c := p.call(), p.call(), p.call()
	a.must("create temp table mine (a int)")
	b.must("listen x")
	refused(c.ask("create temp table mine (a int)"), 'I')
	c.must("begin")
	refused(c.ask("select 1; listen x"), 'E')
	c.must("rollback")
	c.send(&pgproto3.Parse{Name: "p", Query: "select pg_advisory_lock(1)"}, &pgproto3.Bind{PreparedStatement: "p"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	refused(c.reply(), 'I')
	c.send(&pgproto3.Parse{Query: "select pg_advisory_lock(1)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
	refused(c.reply(), 'I')
	undisturbed(t, c)
	p.awaitPinned(2)
	// Who is pinned may do more of it.
	a.must("listen y")
	// What the text does not show ends the client that would be one too many.
	d := p.call()
	d.send(&pgproto3.Query{String: "do $$begin execute 'create ' || 'temp table mine (a int)'; end$$"})
	for e := d.fatal(); e.Code != "53400"; e = d.fatal() {
		t.Fatalf("got %+v", e)
	}
	undisturbed(t, c)
	a.must("discard all")
	p.awaitPinned(1)
	c.must("create temp table mine (a int)")
	p.awaitPinned(2)
}

func TestTrackDropsObjectsWithANotice(t *testing.T) {
	p := statePooler(t, 1, func(s *Settings) { s.SessionState = StateTrack })
	a, b := p.call(), p.call()
	a.must("set work_mem = '3MB'")
	a.send(&pgproto3.Query{String: "create temp table mine (a int)"})
	a.reply()
	if n, ok := a.receive().(*pgproto3.NoticeResponse); !ok || !strings.Contains(n.Message, "temporary_table") {
		t.Errorf("got %+v", n)
	}
	if r := a.ask("select * from mine"); r.err == nil || r.err.Code != "42P01" {
		t.Errorf("got %+v", r)
	}
	if got := a.must("show work_mem") + b.must("show work_mem"); got != "3MB4MB" {
		t.Errorf("work_mem: %s", got)
	}
}

func TestPgBouncersWayKeepsNobody(t *testing.T) {
	p := statePooler(t, 1, func(s *Settings) { s.SessionState = StatePgBouncer })
	a, b := p.call(), p.call()
	a.must("create temp table mine as select 5 as a")
	a.must("set work_mem = '3MB'")
	if got := b.must("select a from mine") + b.must("show work_mem"); got != "53MB" {
		t.Errorf("got %s", got)
	}
	if s := p.state().Pools[0]; s.Counts.Probes != 0 || s.Pinned != 0 {
		t.Errorf("%+v", s)
	}
}

func TestATextIsTakenAtItsWordWithoutQuestions(t *testing.T) {
	p := statePooler(t, 2, func(s *Settings) { s.ProbeOff = true })
	a, b := p.call(), p.call()
	a.must("create temp table mine as select 5 as a")
	undisturbed(t, b)
	if got := a.must("select a from mine"); got != "5" {
		t.Errorf("got %s", got)
	}
	a.must("drop table mine")
	p.awaitPinned(1)
}

func TestALongTextIsReadToItsEnd(t *testing.T) {
	p := statePooler(t, 2, nil)
	a := p.call()
	a.must("select '" + strings.Repeat("x", 300_000) + "'; create temp table mine (a int)")
	p.awaitPinned(1)
	a.must("drop table mine")
	a.send(&pgproto3.Parse{Query: "select '" + strings.Repeat("x", 300_000) + "', pg_advisory_lock(1)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
	a.reply()
	p.awaitPinned(1)
}

func TestPinsInTheExtendedProtocol(t *testing.T) {
	p := statePooler(t, 2, nil)
	a, b := p.call(), p.call()
	a.send(&pgproto3.Parse{Name: "lock", Query: "select pg_advisory_lock(44)"}, &pgproto3.Sync{})
	a.reply()
	if n := p.pinned(); n != 0 {
		t.Errorf("preparing pins %d clients", n)
	}
	a.send(&pgproto3.Bind{PreparedStatement: "lock"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	a.reply()
	p.awaitPinned(1)
	undisturbed(t, b)
	a.send(&pgproto3.Parse{Query: "select pg_advisory_unlock($1)"}, &pgproto3.Bind{Parameters: [][]byte{[]byte("44")}}, &pgproto3.Execute{}, &pgproto3.Sync{})
	a.reply()
	p.awaitPinned(0)
	// The same text again, prepared by another client.
	b.send(&pgproto3.Parse{Name: "mine", Query: "select pg_advisory_lock(44)"}, &pgproto3.Bind{PreparedStatement: "mine"}, &pgproto3.Execute{}, &pgproto3.Sync{})
	b.reply()
	p.awaitPinned(1)
	b.must("discard all")
	p.awaitPinned(0)
}

func TestAnIdlePinnedClientHasItsTimeRun(t *testing.T) {
	p := postgresWith(t, func(s *Settings, r *Route) { r.Timeouts.Idle = 200 * time.Millisecond })
	a := p.call()
	a.must("listen x")
	if e := a.fatal(); e == nil || e.Code != "57P05" {
		t.Errorf("got %+v", e)
	}
	p.await("its server connection is clean", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 1 && s.Pools[0].Pinned == 0 })
}

// S36
func TestWhatASessionBeganWithSurvivesReset(t *testing.T) {
	p := statePooler(t, 1, nil)
	a, b := p.call("TimeZone", "Asia/Tokyo", "application_name", "mine"), p.call()
	for _, reset := range []string{"reset all", "reset timezone", "discard all"} {
		a.must("set timezone = 'Europe/Paris'")
		a.must(reset)
		undisturbed(t, b)
		if got := a.must("show timezone") + a.must("show application_name"); got != "Asia/Tokyomine" {
			t.Errorf("after %s: %s", reset, got)
		}
		if a.params["TimeZone"] != "Asia/Tokyo" {
			t.Errorf("after %s the client was told %s", reset, a.params["TimeZone"])
		}
	}
}

func TestASessionMayBeginWithAnyParameter(t *testing.T) {
	for name, mode := range map[string]pool.Mode{"transaction": pool.Transaction, "session": pool.Session} {
		t.Run(name, func(t *testing.T) {
			p := postgresWith(t, func(_ *Settings, r *Route) { r.Pool.Size, r.Pool.Mode = 1, mode })
			a := p.call("options", `-c work_mem=3MB -c app.tenant=a\ b --search_path=pg_catalog`, "Statement_Timeout", "1h")
			const look = "select concat_ws('|', current_setting('work_mem'), current_setting('app.tenant', true), current_setting('search_path'), current_setting('statement_timeout'))"
			if got := a.must(look); got != "3MB|a b|pg_catalog|1h" {
				t.Errorf("the session has %s", got)
			}
			if mode == pool.Transaction {
				a.must("reset all")
				if got := a.must(look); got != "3MB|a b|pg_catalog|1h" && got != "3MB||pg_catalog|1h" {
					t.Errorf("after RESET ALL it has %s", got)
				}
			} else {
				a.send(&pgproto3.Terminate{})
			}
			if got := p.call().must(look); got != `4MB|"$user", public|0` {
				t.Errorf("another session has %s", got)
			}
		})
	}
}
