package session

import (
	"strings"
	"testing"
)

func describe(e Effects) string {
	var parts []string
	for _, p := range e.Parameters {
		s := p.Name
		if p.Local {
			s = "local " + s
		}
		if p.Reset {
			s = "reset " + s
		}
		parts = append(parts, s)
	}
	for _, n := range []struct {
		Effect
		name string
	}{{SetsUnknown, "unknown"}, {ResetsAll, "all"}, {Frees, "frees"}, {Opaque, "opaque"}, {Body, "body"}, {TempTable, "temp"}, {SessionLock, "lock"},
		{HeldCursor, "cursor"}, {SQLPrepared, "prepared"}, {Library, "library"}, {Listening, "listen"}, {Authorization, "authorization"}, {Function, "function"}} {
		if e.Effect&n.Effect != 0 {
			parts = append(parts, n.name)
		}
	}
	return strings.Join(parts, ",")
}

func TestWhatATextDoesToItsSession(t *testing.T) {
	r := NewReader([]string{"tenant_of", "app.tenant_of"}, []string{"currval"})
	for sql, want := range map[string]string{
		"":         "",
		"select 1": "",
		"SELECT abalance FROM pgbench_accounts WHERE aid = 42":                                        "",
		"UPDATE t SET a = 1, b = lower(c) WHERE d IN (1, 2) AND (e = ANY($1))":                        "",
		`INSERT INTO "users" ("a", "b") VALUES ($1, now()) ON CONFLICT (a) DO UPDATE SET b = 2`:       "",
		`INSERT INTO public.users (a) VALUES (1) RETURNING id`:                                        "",
		`INSERT INTO "public"."users" ("a") SELECT count(*) FROM x JOIN (SELECT 2) y USING (id)`:      "",
		"WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT * FROM a, b":                       "",
		"SELECT a::varchar(10), b::vector(3), CAST(c AS numeric(1,2)), x.y FROM t AS u(a, b)":         "",
		"SELECT * FROM unnest($1::int[]) WITH ORDINALITY AS t(a, b) WHERE a NOT IN (SELECT 1)":        "",
		"SELECT sum(x) FILTER (WHERE y) OVER (PARTITION BY z ORDER BY (w)) FROM (VALUES (1)) AS v(x)": "",
		"begin; commit; rollback to savepoint a; release a; start transaction read only; savepoint b": "",
		"select temp, load, listen from readings where prepare = 1":                                   "",
		"select pg_advisory_xact_lock(1), pg_catalog.now(), tenant_of(3), app.tenant_of(3)":           "",
		"prepare transaction 'x'": "", "commit prepared 'x'": "",

		"set work_mem = '1MB'":                                 "work_mem",
		"SET Session WORK_MEM TO DEFAULT":                      "work_mem",
		"set local work_mem = '1MB'":                           "",
		"set local app.tenant = '1'":                           "local app.tenant",
		`set "app.Tenant" = '1'`:                               "app.tenant",
		`set app . "tenant" to 1`:                              "app.tenant",
		"set time zone 'UTC'":                                  "timezone",
		"set names 'utf8'":                                     "client_encoding",
		"set schema 'x'":                                       "search_path",
		"set role bob":                                         "role",
		"set local role bob":                                   "",
		"set transaction read only":                            "",
		"set constraints all deferred":                         "",
		"set session characteristics as transaction read only": "default_transaction_isolation,default_transaction_read_only,default_transaction_deferrable",
		"set session authorization bob":                        "authorization",
		"set session_authorization to bob":                     "authorization",
		"reset session authorization":                          "authorization",
		"reset work_mem":                                       "reset work_mem",
		"reset time zone":                                      "reset timezone",
		"reset all":                                            "all",
		"discard all":                                          "all,frees",
		"discard plans":                                        "frees",
		"select 1; /* a /* b */ */ set x.y = 1":                "x.y",
		"-- a comment\nset work_mem = 1":                       "work_mem",
		"/* a comment */ set -- b\n work_mem = 1":              "work_mem",
		"select set_config('a.b', $1, false)":                  "a.b",
		"select pg_catalog.SET_CONFIG( 'a.b' , $1, true)":      "local a.b",
		`select "set_config"('a.b', $1, true)`:                 "local a.b",
		"select set_config($1, $2, false)":                     "unknown",
		"select set_config('a' || 'b', $2, false)":             "unknown",
		"select set_config(E'a\\'', $2, false)":                "unknown",
		"select set_config /* x */ ('a.b', 'c', false)":        "a.b",
		"select set_config -- x\n ('a.b', 'c', false)":         "a.b",

		"create /* x */ temp table t (a int)":                                     "temp",
		"create -- x\n temp table t (a int)":                                      "temp",
		"select '/*'; create /* x */ temp table t ()":                             "temp",
		"select '*/5 * * * *'":                                                    "",
		"create /* /* y */ */ temp table t ()":                                    "temp",
		"declare c cursor with /* x */ hold for select 1":                         "cursor",
		"select distinct on (x) pg_try_advisory_lock(42) from t":                  "lock",
		"select distinct on (1) set_config('work_mem', '3MB', false)":             "work_mem",
		"select '1' operator(pg_catalog.||) set_config('work_mem', '3MB', false)": "work_mem,opaque",
		"update pg_settings set setting = '3MB' where name = 'work_mem'":          "body",
		"set app.te$nant = 'a'":                                                   "app.te$nant",
		"set app.É = 'a'":                                                         "app.É",
		"prepare transaction as select 5":                                         "prepared",
		`prepare "transaction" as select 5`:                                       "prepared",
		"do $$begin loop set role pg_monitor; exit; end loop; end$$":              "role,opaque,body",
		"do $$begin execute 'set role pg_monitor'; end$$":                         "role,opaque,body",
		`select U&"set_confi\0067"('work_mem', '3MB', false)`:                     "unknown,opaque",
		`set U&"work_mem" = '3MB'`:                                                "u,unknown,opaque",
		"set /*" + strings.Repeat(" ", 10000) + "foo */ app.tenant = 'a'":         "unknown",
		"select f$1(1)":                                  "opaque",
		`select "f!"(1)`:                                 "opaque",
		`select "x now"(1)`:                              "opaque",
		"select set_config($1, $2, true)":                "opaque",
		"select set_config($1, f(true), true)":           "unknown,opaque",
		"select set_config('a.b', 'x)', true)":           "a.b",
		"set transaction_read_only = on":                 "",
		"set seed = 0.5":                                 "",
		"create temp table t (a int)":                    "temp",
		"CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1": "temp",
		"create local temp table t ()":                   "temp",
		"select * into temp t from x":                    "temp",
		"select 1into temp t":                            "temp",
		"create table pg_temp.t (a int)":                 "temp",
		"select pg_advisory_lock(1)":                     "lock",
		`select "pg_try_advisory_lock_shared" (1)`:       "lock",
		"declare c cursor with hold for select 1":        "cursor",
		"declare c cursor for select 1":                  "",
		"prepare p as select 1":                          "prepared",
		"load 'auto_explain'":                            "library",
		"listen c":                                       "listen",
		"unlisten c":                                     "frees",
		"drop table t":                                   "frees",
		"deallocate p":                                   "frees",
		"close c":                                        "frees",
		"select currval('s')":                            "function",

		"do $$begin perform 1; end$$":               "opaque,body",
		"do $x$begin set a.b = 1; end$x$":           "a.b,opaque,body",
		"call p()":                                  "opaque,body",
		"execute p(1)":                              "opaque,body",
		"explain analyze execute p":                 "opaque,body",
		"create table t as execute p":               "opaque,body",
		"select f(1)":                               "opaque",
		`select "F"(1)`:                             "opaque",
		`select "in"(1)`:                            "opaque",
		"select x.f(1)":                             "opaque",
		"select x.now()":                            "opaque",
		"select x$now()":                            "opaque",
		"select a[1:f(2)]":                          "opaque",
		"select 1 from t where (a) = f(b)":          "opaque",
		"select (1) operator(pg_catalog.+) f(2)":    "opaque",
		"select 'insert into' || f(1)":              "opaque",
		"select -- insert into\n f(1)":              "opaque",
		"select /* into */ f(1)":                    "opaque",
		"select /* ) */ f(1)":                       "opaque",
		"select f /* x */ (1)":                      "opaque",
		"select 'a' , f\n\t(1)":                     "opaque",
		"insert into t (a) values (f(1))":           "opaque",
		"select " + strings.Repeat("x", 70) + "(1)": "opaque",
	} {
		if got := describe(r.Read([]byte(sql))); got != want {
			t.Errorf("%s\n got %q\nwant %q", sql, got, want)
		}
	}
}

func TestReadingCleanTextDoesNotAllocate(t *testing.T) {
	r := NewReader(nil, nil)
	sql := []byte("SELECT a.id, count(*), coalesce(b, 'x') FROM t JOIN u USING (id) WHERE f IN ($1, $2) AND pg_catalog.now() > lower(z)")
	if n := testing.AllocsPerRun(100, func() { r.Read(sql) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzReading: what a text does is seen whatever stands before it in a statement of its own, and reading ends.
func FuzzReading(f *testing.F) {
	for _, s := range []string{"", "select 1", "/* */ --\n", `"a""b"`, "$$ $$", "select f(", "set", "set local", "E'\\''"} {
		f.Add(s)
	}
	r := NewReader(nil, nil)
	f.Fuzz(func(t *testing.T, s string) {
		for _, last := range []string{"set a.b = 1", "listen x", "create temp table t ()", "select f(1)", "select set_config('a.b', 'c', false)"} {
			alone := r.Read([]byte(last))
			got := r.Read([]byte(s + "\n;" + last))
			if got.Effect&alone.Effect != alone.Effect {
				t.Fatalf("%q hides %q: %s", s, last, describe(got))
			}
		}
	})
}

func BenchmarkReading(b *testing.B) {
	r := NewReader(nil, nil)
	sql := []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 1234567;")
	b.SetBytes(int64(len(sql)))
	for b.Loop() {
		r.Read(sql)
	}
}
