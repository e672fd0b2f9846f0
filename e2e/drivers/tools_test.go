package drivers

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestPsqlRunsScripts(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server)
	script := `
\set ON_ERROR_STOP on
\pset format unaligned
create table psql_script (n int, t text);
copy psql_script from stdin;
1	one
2	two
\.
begin;
update psql_script set t = upper(t);
savepoint s;
delete from psql_script;
rollback to s;
commit;
\copy (select * from psql_script order by n) to stdout
select 1 \; select 2;
\d psql_script
do $$ begin raise notice 'said'; end $$;
`
	got := s.tool(server, script, "psql", "-X", "-q")
	for _, want := range []string{"1\tONE", "2\tTWO", "n|integer", "(1 row)"} {
		if !strings.Contains(got, want) {
			t.Errorf("psql did not print %q:\n%s", want, got)
		}
	}
}

func TestPgbenchRunsInEveryProtocol(t *testing.T) {
	server := pgtest.Shared(t)
	transaction := start(t, server, "default_pool_size: 5")
	session := start(t, server, "pool_mode: session", "default_pool_size: 10")
	transaction.tool(server, "", "pgbench", "-i", "-s", "1", "-q")
	for _, c := range []struct {
		protocol string
		through  *sidecar
	}{{"simple", transaction}, {"extended", transaction}, {"simple", session}, {"extended", session}, {"prepared", session}} {
		out := c.through.tool(server, "", "pgbench", "-n", "-M", c.protocol, "-c", "8", "-t", "50")
		if !strings.Contains(out, "number of transactions actually processed: 400/400") || !strings.Contains(out, "failed transactions: 0 ") {
			t.Errorf("pgbench -M %s:\n%s", c.protocol, out)
		}
	}
}

func TestPgDumpThroughASessionEqualsADirectOne(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	s := start(t, server, "pool_mode: session")
	s.tool(server, "", "pgbench", "-i", "-s", "1", "-q")
	s.tool(server, `create view v as select 1 as one; create function f() returns int language sql as 'select 2';`, "psql", "-X", "-q")
	direct := append(os.Environ(), "PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", server.Port), "PGUSER=postgres", "PGDATABASE=postgres")
	want := withoutKeys(runTool(t, direct, "", server.Bin("pg_dump")))
	got := withoutKeys(s.tool(server, "", "pg_dump"))
	if got != want {
		t.Fatalf("the dumps differ: %d bytes through the sidecar, %d directly", len(got), len(want))
	}
	s.tool(server, "create database copy", "psql", "-X", "-q")
	restored := start(t, server, "pool_mode: session", "databases:", fmt.Sprintf("  - {name: app, host: 127.0.0.1, port: %d, dbname: copy, user: postgres}", server.Port))
	restored.tool(server, got, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1")
	if again := withoutKeys(restored.tool(server, "", "pg_dump")); again != want {
		t.Fatalf("the restored database dumps to %d bytes, want %d", len(again), len(want))
	}
}

// withoutKeys drops what newer versions of pg_dump make up anew each time.
func withoutKeys(dump string) string {
	return regexp.MustCompile(`(?m)^\\(un)?restrict .*\n`).ReplaceAllString(dump, "")
}
