package proxy

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

var _ = fmt.Sprint
var _ pgproto3.Query

func TestZZScan(t *testing.T) {
	for _, sql := range []string{
		"create /* x */ temp table mine (a int)",
		"create -- x\n temp table mine (a int)",
		"declare c cursor with /* x */ hold for select 1",
		"select distinct on (1) pg_advisory_lock(42)",
		"select distinct on (1) set_config('work_mem','3MB',false)",
		"select '1' operator(pg_catalog.||) set_config('work_mem','3MB',false)",
		`select U&"set_confi\0067"('work_mem','3MB',false)`,
		`select U&"set_config" uescape '!' ('work_mem','3MB',false)`,
		`set U&"work_mem" = '3MB'`,
		"update pg_settings set setting = '3MB' where name = 'work_mem'",
		"set app.te$nant = 'a'",
		"set app.É = 'a'",
		"prepare transaction as select 5",
		`prepare "transaction" as select 5`,
		"select f$1(1)", `select "f!"(1)`, `select "x now"(1)`,
		"do $$begin loop set app.tenant = 'a'; exit; end loop; end$$",
		"do $$begin execute 'set app.tenant = 1'; end$$",
		"do $$begin execute 'set role pg_monitor'; end$$",
	} {
		e := testReader.Read([]byte(sql))
		t.Logf("%-80q effect=%b params=%v", sql, e.Effect, e.Parameters)
	}
}
