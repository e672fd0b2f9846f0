package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// S1
func TestTheFirstMessageOfARequestGetsAServerConnection(t *testing.T) {
	for name, m := range map[string]pgproto3.FrontendMessage{
		"Query": &pgproto3.Query{String: "select 1"}, "Parse": &pgproto3.Parse{Query: "select 1"}, "Bind": &pgproto3.Bind{},
		"Describe": &pgproto3.Describe{ObjectType: 'S'}, "Execute": &pgproto3.Execute{}, "Sync": &pgproto3.Sync{}, "Flush": &pgproto3.Flush{},
		"Close of a portal": &pgproto3.Close{ObjectType: 'P', Name: "p"}, "FunctionCall": &pgproto3.FunctionCall{Function: 177},
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
			c := callAt(t, p.Addr)
			before := p.state().Pools[0].Counts.Assignments
			c.send(m)
			p.await("it has had one", func(s Snapshot) bool { return s.Pools[0].Counts.Assignments == before+1 })
			switch m.(type) {
			case *pgproto3.Query, *pgproto3.Sync, *pgproto3.FunctionCall:
			default:
				c.send(&pgproto3.Sync{})
			}
			if r := c.reply(); r.status != 'I' {
				t.Errorf("answered by %+v", r)
			}
			c.must("select 7")
		})
	}
}

// S2, S17
func TestWhatNeedsNoServerConnectionGetsNone(t *testing.T) {
	for name, messages := range map[string][]pgproto3.FrontendMessage{
		"the rest of a COPY that failed": {&pgproto3.CopyData{Data: []byte("1\n")}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{Message: "no"}},
		"Close of a prepared statement":  {&pgproto3.Close{ObjectType: 'S', Name: "s"}},
		"Terminate":                      {&pgproto3.Terminate{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
			holder, c := callAt(t, p.Addr), callAt(t, p.Addr)
			holder.must("begin")
			before := p.state().Pools[0].Counts.Assignments
			c.send(messages...)
			switch messages[0].(type) {
			case *pgproto3.Close:
				until[*pgproto3.CloseComplete](c)
			case *pgproto3.Terminate:
				p.await("it has gone", func(s Snapshot) bool { return s.Clients == 1 })
			default:
				c.send(&pgproto3.Close{ObjectType: 'S', Name: "s"}) // answered when everything before it is read
				until[*pgproto3.CloseComplete](c)
			}
			if s := p.state().Pools[0]; s.Counts.Assignments != before || s.Stats.Waiting != 0 {
				t.Errorf("it was given a server connection, or waits for one: %+v", s)
			}
			holder.must("commit")
		})
	}
}

// What was not run when its client was turned away must not be run later.
//
// M6, S50
func TestWhatAClientSaidBeforeItsWaitEndedIsNeverRun(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "turned_away")
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.QueryWaitTimeout = 1, 200*time.Millisecond })
	holder := p.call()
	holder.must("begin")
	for _, b := range [][]byte{
		packet('Q', "insert into turned_away values (1)\x00"),
		append(append(append(parsePacket("s", "insert into turned_away values (2)"), packet('B', bindS)...), packet('E', execute)...), packet('S', "")...),
		append(packet('Q', "insert into turned_away values (3)\x00"), packet('Q', "insert into turned_away values (4)\x00")...),
	} {
		r := p.raw(t).login()
		r.send(b)
		if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "53300" || errs[0].Severity != "FATAL" {
			t.Errorf("got %+v, want FATAL 53300", errs)
		}
	}
	holder.must("commit")
	for range 3 { // whoever would run it has had its turn
		if n := holder.must("select count(*) from turned_away"); n != "0" {
			t.Fatalf("%s rows were inserted for clients that had been turned away", n)
		}
	}
}

// M2
func TestAParseWhoseClientVanishesBeforeSyncLeavesNoStatementThatIsNotThere(t *testing.T) {
	for name, said := range map[string]string{
		"by itself":         "",
		"behind an error":   string(packet('B', "\x00nobody\x00\x00\x00\x00\x00\x00\x00")),
		"in a transaction":  string(packet('Q', "begin\x00")),
		"in a failed one":   string(packet('Q', "begin; select 1/0\x00")),
		"behind its answer": string(parsePacket("other", "select 6")) + string(packet('H', "")),
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
			for range 5 {
				r := p.raw(t).login()
				r.send([]byte(said + string(parsePacket("s", "select 7"))))
				_ = r.conn.Close()
				p.await("it has gone", func(s Snapshot) bool { return s.Clients == 0 })
				next := p.raw(t).login()
				next.send(parsePacket("mine", "select 7"), packet('B', "\x00mine\x00\x00\x00\x00\x00\x00\x00"), packet('E', execute), packet('S', ""))
				if m := next.until('D'); !strings.HasSuffix(string(m.body), "7") {
					t.Errorf("got %q", m.body)
				}
				next.until('Z')
				next.send(packet('X', "")).ending()
			}
			if n := p.state().Counters.Dials; n > 1 {
				t.Errorf("%d server connections were made, want 1", n)
			}
		})
	}
}

// The same text means another table under another search_path, whoever has prepared it.
//
// M11
func TestATextMeansWhatItsClientsSearchPathSays(t *testing.T) {
	s := pgtest.Shared(t)
	for _, name := range []string{"north", "south"} {
		sql := fmt.Sprintf("drop schema if exists %[1]s cascade; create schema %[1]s; create table %[1]s.place as select '%[1]s' as name", name)
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	clients := map[string]*raw{}
	for _, name := range []string{"north", "south"} {
		r := p.raw(t).login()
		r.ask("set search_path to " + name)
		r.send(parsePacket("s", "select name from place"), packet('S', "")).until('Z')
		clients[name] = r
	}
	for range 3 {
		for name, r := range clients {
			r.send(packet('B', bindS), packet('E', execute), packet('S', ""))
			if m := r.until('D'); !strings.HasSuffix(string(m.body), name) {
				t.Errorf("who looks at %s got %q", name, m.body)
			}
			r.until('Z')
		}
	}
}

// S81
func TestCancelRequestsNeedNoSlot(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	p.SetCapacity(s.Addr(), 1, 0)
	c := p.call()
	sleeping(c, s)
	if err := c.cancel(); err != nil {
		t.Fatal(err)
	}
	cancelled(c)
	c.must("rollback")
	if n := p.state().Counters.Cancels; n != 1 {
		t.Errorf("%d cancel requests went to the server, want 1", n)
	}
}

// S82
func TestLoginsNeedNoCapacityOnceAServerHasBeenSeen(t *testing.T) {
	s := pgtest.Shared(t)
	p := pooledPostgres(t, nil)
	first := p.call()
	first.must("select 1")
	p.SetCapacity(s.Addr(), 0, 0)
	p.await("no server connection is left", func(s Snapshot) bool { return s.Servers == 0 })
	second := p.call()
	if second.params["server_version"] == "" || second.params["server_version"] != first.params["server_version"] {
		t.Errorf("it was welcomed with %v", second.params)
	}
	second.send(&pgproto3.Query{String: "select 7"})
	p.await("its query waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	p.SetCapacity(s.Addr(), 1, 0)
	if r := second.reply(); r.value(0) != "7" {
		t.Errorf("answered by %+v", r)
	}
}

// S60
func TestAnEmptyPasswordIsRefusedWhateverTheListSays(t *testing.T) {
	p := plainProxy(t, Plain, func(s *Settings) { s.Users["nopass"] = "" })
	for _, user := range []string{"app", "nopass"} {
		r := p.raw(t).send(hello("user", user))
		r.until('R')
		r.send(packet('p', "\x00")).refused("28P01", `password authentication failed for user "`+user+`"`)
	}
	if !strings.Contains(p.logs.String(), "empty password returned by client") {
		t.Error("the log does not tell")
	}
}

func TestAParseThatEndsBehindItsNameIsLeftToPostgreSQL(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	for _, body := range []string{"", "\x00", "\x00d", "\x00deallocate s", "\x00deallocate s\x00", "\x00deallocate s\x00\x00", "s\x00", "s"} {
		r := p.raw(t).login()
		r.send(parsePacket("s", "select 7"), packet('S', "")).until('Z')
		r.send(packet('P', body), packet('S', ""))
		m, err := r.hear()
		if err != nil || m.kind != 'E' || errorOf(t, m).Code != "08P01" {
			t.Errorf("%q was answered by %q, %v", body, m.body, err)
		}
		r.until('Z')
		r.send(packet('B', bindS), packet('E', execute), packet('S', ""))
		if m := r.until('D'); !strings.HasSuffix(string(m.body), "7") {
			t.Errorf("after %q: got %q", body, m.body)
		}
	}
}
