package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// seen is what a client sees of what others may have left in its session.
const seen = `select concat_ws(' ', current_user, current_setting('work_mem'), coalesce(current_setting('app.tenant', true), 'NULL'),
	coalesce(current_setting('app.te$nant', true), 'NULL'), coalesce(current_setting('app.É', true), 'NULL'),
	(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
	(select count(*) from pg_class where relnamespace = pg_my_temp_schema()), (select count(*) from pg_prepared_statements where from_sql),
	(select count(*) from pg_cursors where is_holdable))`

const seenFresh = "postgres 4MB NULL NULL NULL 0 0 0 0"

func TestNothingLeaksHoweverItIsWritten(t *testing.T) {
	for _, sql := range []string{
		"create /* x */ temp table t (a int)", "create -- x\n temp table t (a int)", "declare c cursor with /* x */ hold for select 1",
		"select distinct on (x) pg_try_advisory_lock(42) from (values (1)) as v(x)", "select distinct on (1) set_config('work_mem', '3MB', false)",
		"select '1' operator(pg_catalog.||) set_config('work_mem', '3MB', false)", "update pg_settings set setting = '3MB' where name = 'work_mem'",
		"set app.te$nant = 'a'", "set app.É = 'a'", "prepare transaction as select 5",
		"do $$begin loop set role pg_monitor; exit; end loop; end$$", "do $$begin execute 'set role pg_monitor'; end$$",
		"do $$begin execute 'set app.tenant = 1'; end$$", `select U&"set_confi\0067"('work_mem', '3MB', false)`, `set U&"work_mem" = '3MB'`,
		"set /*" + strings.Repeat(" ", 4093) + "foo */ app.tenant = 'a'", "set /*" + strings.Repeat(" ", 9000) + "foo */ app.tenant = 'a'",
		"do $$begin /*" + strings.Repeat("x", 200_000) + "*/ if true then set app.tenant = 'a'; end if; end$$",
		"create /*" + strings.Repeat("x", 200_000) + "*/ temp table t (a int)",
		"select leak_role()", "begin; select leak_role(); commit", "set search_path = pg_temp, public; create table t (a int)",
		"prepare p as select set_config('app.tenant', 'a', false); execute p; deallocate p",
	} {
		t.Run(fmt.Sprintf("%.60s", sql), func(t *testing.T) {
			p := statePooler(t, 1, nil)
			p.call().must("create or replace function leak_role() returns text language plpgsql as $$begin set role pg_monitor; return ''; end$$")
			p.await("it is idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 1 })
			a := p.call()
			a.must(sql)
			a.send(&pgproto3.Terminate{})
			if got := p.call().must(seen); got != seenFresh {
				t.Errorf("the next client sees %s", got)
			}
		})
	}
}

func TestNothingLeaksThroughTheExtendedProtocol(t *testing.T) {
	lock := "select pg_try_advisory_lock(42)"
	for name, talk := range map[string][]pgproto3.FrontendMessage{
		"a Parse that the server skips": {
			&pgproto3.Parse{Query: lock}, &pgproto3.Sync{}, &pgproto3.Bind{PreparedStatement: "bad"}, &pgproto3.Flush{}, nil,
			&pgproto3.Parse{Query: "select 1"}, &pgproto3.Sync{}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{},
		},
		"a statement of SQL's": {
			&pgproto3.Query{String: "prepare p as select set_config('app.tenant', $1, false)"},
			&pgproto3.Bind{PreparedStatement: "p", Parameters: [][]byte{[]byte("a")}}, &pgproto3.Execute{}, &pgproto3.Sync{},
			&pgproto3.Query{String: "deallocate p"},
		},
		"a function by its number": {
			&pgproto3.FunctionCall{Function: 2078, ArgFormatCodes: []uint16{0}, Arguments: [][]byte{[]byte("work_mem"), []byte("3MB"), []byte("f")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := statePooler(t, 1, nil)
			a := p.call()
			for _, m := range talk {
				if m == nil {
					until[*pgproto3.ErrorResponse](a)
					continue
				}
				a.send(m)
				switch m.(type) {
				case *pgproto3.Sync, *pgproto3.Query, *pgproto3.FunctionCall:
					a.reply()
				}
			}
			a.send(&pgproto3.Terminate{})
			if got := p.call().must(seen); got != seenFresh {
				t.Errorf("the next client sees %s", got)
			}
		})
	}
	for _, off := range []string{"without questions", "with them"} {
		t.Run("a name that is not told, "+off, func(t *testing.T) {
			p := statePooler(t, 1, func(s *Settings) { s.ProbeOff = off == "without questions" })
			a := p.call()
			a.send(&pgproto3.Parse{Query: "select set_config($1, $2, false)"}, &pgproto3.Bind{Parameters: [][]byte{[]byte("work_mem"), []byte("3MB")}},
				&pgproto3.Execute{}, &pgproto3.Sync{})
			a.reply()
			p.awaitPinned(1)
			a.send(&pgproto3.Terminate{})
			if got := p.call().must(seen); got != seenFresh {
				t.Errorf("the next client sees %s", got)
			}
		})
	}
}

func TestWhatWasLeftBeforeAReloadIsNotKept(t *testing.T) {
	s := func(state SessionState) *Settings {
		shared := postgresSettings(t, func(s *Settings, r *Route) { s.SessionState, r.Pool.Size = state, 1 })
		return shared
	}
	p := startProxy(t, s(StatePgBouncer))
	p.call().must("set work_mem = '3MB'; create temp table t (a int); set app.tenant = 'a'")
	p.reloaded(t, s(StatePin))
	if got := p.call().must(seen); got != seenFresh {
		t.Errorf("a client sees %s", got)
	}
}

func TestASetLocalOfARealParameterLeavesItAsItWas(t *testing.T) {
	p := statePooler(t, 1, nil)
	a, b := p.call(), p.call()
	for _, sql := range []string{
		"begin; set local plpgsql.extra_warnings = 'all'; do $$begin end$$; commit", "select 'notes; set local plpgsql.foo = 1'",
		"select 1", "begin; set local plpgsql.nonsense = 1",
	} {
		a.ask(sql)
		a.ask("rollback")
		undisturbed(t, b)
		undisturbed(t, a)
	}
}

func TestNotificationsArriveWhileTheServerIsAsked(t *testing.T) {
	p := statePooler(t, 2, nil)
	p.call().must("create or replace function harmless_or_not() returns int language sql as 'select 1'")
	a, b := p.call(), p.call()
	a.must("listen x")
	const n = 200
	go func() {
		for range n {
			b.ask("notify x")
		}
	}()
	heard := 0
	for end := time.Now().Add(patience); heard < n && time.Now().Before(end); {
		a.send(&pgproto3.Query{String: "select harmless_or_not()"})
		for ready := false; !ready; {
			switch a.receive().(type) {
			case *pgproto3.NotificationResponse:
				heard++
			case *pgproto3.ReadyForQuery:
				ready = true
			case nil:
				t.Fatal("the connection ended")
			}
		}
	}
	if heard != n {
		t.Errorf("%d of %d notifications arrived", heard, n)
	}
}

func TestOnlyWhatIsCodeIsRefused(t *testing.T) {
	p := statePooler(t, 2, nil)
	p.call().must("drop table if exists posts; create table posts (text text)")
	a, b := p.call(), p.call()
	a.must("listen x")
	p.awaitPinned(1)
	b.must("insert into posts values ('Hi; listen to me')")
	b.must("insert into posts values ($x$ do; listen y $x$) /* ; listen z */")
	if r := b.ask("listen y"); r.err == nil || r.err.Code != "53400" {
		t.Errorf("got %+v", r)
	}
	b.must("drop table posts")
}

func TestObjectsOfATransactionAreNotRefusedToMany(t *testing.T) {
	p := statePooler(t, 4, nil)
	done := make(chan reply, 4)
	for range cap(done) {
		go func() {
			c := p.call()
			var r reply
			for range 20 {
				if r = c.ask("begin; create temp table mine (a int) on commit drop; commit"); r.err != nil {
					break
				}
			}
			done <- r
		}()
	}
	for range cap(done) {
		if r := <-done; r.err != nil {
			t.Errorf("%s", r.err.Message)
		}
	}
	p.awaitPinned(0)
}

func TestValuesKeepTheirEncoding(t *testing.T) {
	p := statePooler(t, 1, nil)
	a, b := p.call("client_encoding", "LATIN1"), p.call("client_encoding", "UTF8")
	a.must("set app.tenant = 'Jos\xe9'")
	const look = "select encode(convert_to(current_setting('app.tenant'), 'UTF8'), 'hex')"
	b.must("set app.tenant = 'José'")
	for range 2 {
		for name, c := range map[string]*caller{"LATIN1": a, "UTF8": b} {
			if got := c.must(look); got != "4a6f73c3a9" {
				t.Errorf("%s: %s", name, got)
			}
		}
	}
	b.must("set app.tenant = 'JosÃ©'") // whose bytes in LATIN1 are those of the other in UTF8
	for range 2 {
		if got := a.must(look); got != "4a6f73c3a9" {
			t.Errorf("LATIN1: %s", got)
		}
		if got := b.must(look); got != "4a6f73c383c2a9" {
			t.Errorf("UTF8: %s", got)
		}
	}
}

func TestAPinnedClientHasWhatItWasTold(t *testing.T) {
	p := statePooler(t, 2, nil)
	a := p.call("TimeZone", "Asia/Tokyo")
	a.must("listen x")
	for _, reset := range []string{"reset timezone", "reset all"} {
		a.must("set timezone = 'UTC'")
		a.must(reset)
		if got := a.must("show timezone"); got != "Asia/Tokyo" || a.params["TimeZone"] != got {
			t.Errorf("after %s it has %s and was told %s", reset, got, a.params["TimeZone"])
		}
	}
}

func TestALateCancelRequestDoesNotHitTheQuestion(t *testing.T) {
	p := statePooler(t, 1, nil)
	p.call().must("create or replace function harmless_or_not() returns int language sql as 'select 1'")
	a := p.call()
	for range 30 {
		a.send(&pgproto3.Query{String: "select harmless_or_not()"})
		if err := a.cancel(); err != nil {
			t.Fatal(err)
		}
		a.reply()
	}
	p.awaitPinned(0)
	undisturbed(t, p.call())
}

func TestWhoCannotBeAskedAboutIsAskedAgain(t *testing.T) {
	p := statePooler(t, 1, nil)
	a, b := p.call(), p.call()
	a.must("set statement_timeout = '1ms'")
	a.ask("set statement_timeout = 0")
	undisturbed(t, b)
	p.awaitPinned(0)
}

func TestTrackDropsAParameterWhoseNameIsNotTold(t *testing.T) {
	p := statePooler(t, 1, func(s *Settings) { s.SessionState = StateTrack })
	a := p.call()
	a.must("select set_config('app.' || 'tenant', 'a', false)")
	if got := p.call().must(seen); got != seenFresh {
		t.Errorf("another client sees %s", got)
	}
}

func TestHostileTextsCostLittle(t *testing.T) {
	r := testReader
	for name, piece := range map[string]string{"parameters": ";set local a.a%d=1", "comments": ";set/*%d", "quotes": `;set "%d`, "calls": "set_config('%d"} {
		var b strings.Builder
		for i := 0; b.Len() < 128<<10; i++ {
			fmt.Fprintf(&b, piece, i)
		}
		began := time.Now()
		r.Read([]byte(b.String()))
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: reading 128 KiB took %v", name, took)
		}
	}
	p := statePooler(t, 1, nil)
	a := p.call()
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, ";set local a.a%d", i)
	}
	a.must("select '" + b.String() + "'")
	p.awaitPinned(1)
}
