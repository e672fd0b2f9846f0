package proxy

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

var allTargets = []TargetSession{AnySession, ReadWrite, ReadOnly, Primary, Standby, PreferStandby}

// targetSettings has a database for each target, by its name, before the servers given by host and port.
func targetSettings(edit func(*Route), servers ...*pgtest.Server) *Settings {
	return testSettings("", 0, func(r *Route) {
		r.Hosts, r.Ports = nil, nil
		for _, s := range servers {
			r.Hosts, r.Ports = append(r.Hosts, s.Host), append(r.Ports, s.Port)
		}
		for _, t := range allTargets {
			if t.wants() == r.Database {
				r.Target = t
			}
		}
		r.Pool.LoginRetry = 200 * time.Millisecond
		if edit != nil {
			edit(r)
		}
	})
}

func TestAServerIsWhatTheDatabaseAsksFor(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{Settings: pgtest.Replicating})
	standby := pgtest.StartStandby(t, primary, pgtest.Options{})
	p := startProxy(t, targetSettings(nil, primary, standby))
	const ask = "select case when pg_is_in_recovery() then 'standby' else 'primary' end"
	for target, want := range map[TargetSession]string{
		ReadWrite: "primary", Primary: "primary", ReadOnly: "standby", Standby: "standby", PreferStandby: "standby",
	} {
		// Several at once, so that every host is where the turn begins.
		var all []*caller
		for range 4 {
			c := p.call("database", target.wants())
			c.must("begin")
			all = append(all, c)
		}
		for _, c := range all {
			if got := c.must(ask); got != want {
				t.Errorf("%s: got a %s, want a %s", target.wants(), got, want)
			}
			c.must("commit")
		}
	}
	both := map[string]int{}
	for range 4 {
		c := p.call("database", "any")
		c.must("begin")
		both[c.must(ask)]++
	}
	if both["primary"] != 2 || both["standby"] != 2 {
		t.Errorf("any: got %v, want each twice", both)
	}

	// A fail-over is followed.
	writer, reader := p.call("database", "primary"), p.call("database", "standby")
	reader.must("select 7")
	preferring := p.call("database", "prefer-standby")
	primary.Stop()
	writer.send(&pgproto3.Query{String: "create table after_failover (x int)"})
	p.await("an attempt that finds no primary", func(s Snapshot) bool {
		return strings.Contains(p.logs.String(), "server is a standby or read-only, target_session_attrs is primary")
	})
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := writer.reply(); r.err != nil {
		t.Fatalf("after the promotion: %+v", r.err)
	}
	if got := writer.must(ask); got != "primary" {
		t.Errorf("after the promotion: got a %s", got)
	}
	if got := preferring.must(ask); got != "primary" {
		t.Errorf("where a standby is only preferred: got a %s", got)
	}
	// What one connection was told holds for all to the server: those that were to a standby are used no more.
	p.await("no connection of database standby", func(s Snapshot) bool {
		for _, pl := range s.Pools {
			if pl.Key.Database == "standby" {
				return pl.Stats.Idle+pl.Stats.Active+pl.Stats.Closing+pl.Stats.Testing == 0
			}
		}
		return false
	})
	if !strings.Contains(p.logs.String(), pool.WrongRole.String()) {
		t.Error("the log does not say why")
	}
}

func TestAnOlderServerIsAskedWhatItIs(t *testing.T) {
	for _, c := range []struct {
		target      TargetSession
		ask, answer string
		fits        bool
	}{
		{ReadWrite, "SHOW transaction_read_only", "off", true},
		{ReadWrite, "SHOW transaction_read_only", "on", false},
		{ReadOnly, "SHOW transaction_read_only", "on", true},
		{Primary, "SELECT pg_catalog.pg_is_in_recovery()", "f", true},
		{Primary, "SELECT pg_catalog.pg_is_in_recovery()", "t", false},
		{Standby, "SELECT pg_catalog.pg_is_in_recovery()", "t", true},
		{PreferStandby, "SELECT pg_catalog.pg_is_in_recovery()", "f", true},
	} {
		t.Run(c.target.wants()+" "+c.answer, func(t *testing.T) {
			p, _ := pooledFake(t, func(conn *pgtest.FakeConn) {
				conn.Login()
				if got := conn.Query(); got != c.ask {
					t.Errorf("it was asked %q, want %q", got, c.ask)
				}
				conn.Answer(c.answer)
				echoQueries(conn)
			}, func(_ *Settings, r *Route) { r.Target, r.Pool.QueryWaitTimeout = c.target, time.Second })
			if c.fits {
				undisturbed(t, p.call())
				return
			}
			if _, err := tryCall(t, p.Addr); err == nil || !strings.Contains(err.Error(), "query_wait_timeout") {
				t.Errorf("got %v, want a query_wait_timeout", err)
			}
		})
	}
}

// reporting is a login to a server that says what it is.
func reporting(c *pgtest.FakeConn, standby, readOnly string) {
	c.Startup()
	c.AuthOK()
	c.ParameterStatus("server_version", "15.0")
	c.ParameterStatus("client_encoding", "UTF8")
	c.ParameterStatus("in_hot_standby", standby)
	c.ParameterStatus("default_transaction_read_only", readOnly)
	c.KeyData(uint32(c.Number), []byte{1, 2, 3, 4})
	c.Ready('I')
}

func TestOneReportConcernsAllConnectionsToTheServer(t *testing.T) {
	changed := make(chan struct{})
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		reporting(c, "off", "off")
		status := byte('I')
		for {
			sql := c.Query()
			if sql == "idle report" {
				c.Answer(strconv.Itoa(c.Number))
				<-changed
				c.ParameterStatus("in_hot_standby", "on")
				continue
			}
			switch sql {
			case "begin":
				status = 'T'
			case "commit":
				status = 'I'
			}
			c.Complete("X")
			c.Ready(status)
		}
	}, func(_ *Settings, r *Route) { r.Target = Primary })
	busy, idle := p.call(), p.call()
	busy.must("begin")
	idle.must("idle report")
	if n := f.Accepted(); n != 2 {
		t.Fatalf("%d connections, want 2", n)
	}
	close(changed)
	f.AwaitOpen(t, 1) // the idle one has gone
	busy.must("in the transaction")
	if n := f.Accepted(); n != 2 {
		t.Errorf("%d connections, want 2: a transaction is not moved", n)
	}
	busy.must("commit")
	f.AwaitOpen(t, 0)
	busy.must("on a new one")
	if n := f.Accepted(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

func TestAServerThatTurnsReadOnlyIsLeft(t *testing.T) {
	for target, again := range map[TargetSession]int{ReadWrite: 2, Primary: 1} {
		t.Run(target.wants(), func(t *testing.T) {
			answered := make(chan struct{})
			p, f := pooledFake(t, func(c *pgtest.FakeConn) {
				reporting(c, "off", "off")
				for {
					switch sql := c.Query(); sql {
					case "change": // a client's own setting
						c.ParameterStatus("default_transaction_read_only", "on")
						c.Answer(sql)
					case "reload":
						c.Answer(sql)
						<-answered // else it is taken for the client's
						c.ParameterStatus("default_transaction_read_only", "on")
					default:
						c.Answer(sql)
					}
				}
			}, func(_ *Settings, r *Route) { r.Target = target })
			c := p.call()
			c.must("change")
			c.must("select 7")
			if n := f.Accepted(); n != 1 {
				t.Fatalf("%d connections after a client's own setting, want 1", n)
			}
			c.must("reload")
			p.await("idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == 1 })
			close(answered)
			if again == 2 {
				f.AwaitOpen(t, 0)
			}
			c.must("select 7")
			if n := f.Accepted(); n != again {
				t.Errorf("%d connections, want %d", n, again)
			}
		})
	}
}

func TestAReadOnlyErrorEndsTheUseOfItsConnection(t *testing.T) {
	for target, again := range map[TargetSession]int{ReadWrite: 2, Primary: 2, AnySession: 1} {
		t.Run(target.wants(), func(t *testing.T) {
			p, f := pooledFake(t, func(c *pgtest.FakeConn) {
				reporting(c, "off", "off")
				for {
					if c.Query() == "write" {
						c.Error("ERROR", "25006", "cannot execute INSERT in a read-only transaction")
						c.Ready('I')
						continue
					}
					c.Answer("7")
				}
			}, func(_ *Settings, r *Route) { r.Target = target })
			c := p.call()
			if r := c.ask("write"); r.err == nil || r.err.Code != "25006" || r.status != 'I' {
				t.Fatalf("got %+v", r)
			}
			c.must("select 7")
			if n := f.Accepted(); n != again {
				t.Errorf("%d connections, want %d", n, again)
			}
		})
	}
}

func TestTheConnectQueryComesFirst(t *testing.T) {
	s := pgtest.Shared(t)
	p := startProxy(t, testSettings(s.Host, s.Port, func(r *Route) {
		r.ConnectQuery = "set work_mem = '123kB'; set application_name = 'told by connect_query'; select 1 from generate_series(1, 20)"
		r.Target = ReadWrite
	}))
	c := p.call()
	if got := c.must("show work_mem"); got != "123kB" {
		t.Errorf("work_mem is %s", got)
	}
	undisturbed(t, c)
}

func TestAConnectQueryThatFailsIsAFailedLogin(t *testing.T) {
	s := pgtest.Shared(t)
	for _, c := range []struct{ query, code, told, logged string }{
		{"selec 1", "42601", `server login failed: connect_query failed: syntax error at or near "selec"`, "connect_query failed: syntax error"},
		{"begin", "25001", "server login failed: connect_query failed: it leaves a transaction open", "leaves a transaction open"},
		{"select pg_sleep(60)", "53300", "query_wait_timeout: no server connection became free within 1s", "connect timeout: the server did not finish the login within 300ms"},
		{"copy pg_class to stdout", "53300", "query_wait_timeout: no server connection became free within 1s", "connect_query failed: server answered it with message 'H'"},
		{"do $$ begin raise exception 'later' using errcode = '57P03'; end $$", "53300", "query_wait_timeout: no server connection became free within 1s", "connect_query failed: later"},
	} {
		set := testSettings(s.Host, s.Port, func(r *Route) {
			r.ConnectQuery, r.Pool.QueryWaitTimeout = c.query, time.Second
		})
		set.ServerConnectTimeout = 300 * time.Millisecond
		p := startProxy(t, set)
		p.raw(t).send(hello("user", "app", "database", "app")).refused(c.code, c.told)
		if log := p.logs.String(); !strings.Contains(log, c.logged) {
			t.Errorf("%s: the log does not say %q", c.query, c.logged)
		}
		if n := p.state().Counters.DialFailures; n == 0 {
			t.Errorf("%s: no failed attempt is counted", c.query)
		}
	}
}
