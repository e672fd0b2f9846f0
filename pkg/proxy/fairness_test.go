package proxy

import (
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// turns makes a sequence; its next value tells a client when it was served.
func turns(t *testing.T) (sql string) {
	t.Helper()
	if err := pgtest.Shared(t).Exec(t.Context(), "drop sequence if exists turns; create sequence turns"); err != nil {
		t.Fatal(err)
	}
	return "select nextval('turns')"
}

// turn reads the answer.
func turn(c *caller) int {
	c.t.Helper()
	r := c.reply()
	n, err := strconv.Atoi(r.value(0))
	if r.err != nil || err != nil {
		c.t.Fatalf("a client was answered by %+v", r)
	}
	return n
}

// S4
func TestWaitersAreServedInTheOrderOfTheirArrival(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	sql := turns(t)
	for _, mode := range []string{"simple", "extended"} {
		holder := p.transactions(1)[0]
		first := 0
		clients := make([]*caller, 20)
		for i := range clients {
			clients[i] = p.call()
			if mode == "simple" {
				clients[i].send(&pgproto3.Query{String: sql})
			} else {
				clients[i].send(&pgproto3.Parse{Query: sql}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
			}
			p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == i+1 })
		}
		departures["by FIN"](clients[7]) // who leaves does not disturb the order
		p.await("one has left", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 19 })
		holder.must("commit")
		for i, c := range clients {
			if i == 7 {
				continue
			}
			n := turn(c)
			if n <= first {
				t.Errorf("%s: client %d was served as number %d, after one that came later", mode, i, n)
			}
			first = n
		}
	}
}

// S4
func TestANewcomerNeverOvertakes(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	sql := turns(t)
	holder, waiter, newcomer := p.call(), p.call(), p.call()
	for range 100 {
		holder.must("begin")
		waiter.send(&pgproto3.Query{String: sql})
		p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
		// The newcomer asks in the very moment in which the connection becomes free.
		var asked sync.WaitGroup
		asked.Go(func() { newcomer.send(&pgproto3.Query{String: sql}) })
		holder.must("commit")
		asked.Wait()
		if w, n := turn(waiter), turn(newcomer); w > n {
			t.Fatalf("the newcomer was served as number %d, before the waiter with number %d", n, w)
		}
	}
}

// Requests that came together are one stay, whoever waits; the next stay begins at the end of the queue.
//
// S6
func TestAStayLastsUntilNothingIsInFlight(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	sql := turns(t)
	clients := p.transactions(1)
	for range 4 {
		clients = append(clients, p.call())
	}
	for i, c := range clients[1:] {
		c.send(&pgproto3.Query{String: sql})
		p.await("it waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == i+1 })
	}
	clients[0].send(&pgproto3.Query{String: "commit"}, &pgproto3.Query{String: sql})
	if r := clients[0].reply(); r.status != 'I' {
		t.Fatalf("commit was answered by %+v", r)
	}
	last := turn(clients[0])
	clients[0].send(&pgproto3.Query{String: sql})
	clients = append(clients, clients[0])
	for i, c := range clients[1:] {
		n := turn(c)
		if n != last+1 {
			t.Errorf("client %d was served as number %d, want %d", i+1, n, last+1)
		}
		last = n
	}
}

// S8
func TestStatementModeRefusesTransactionBlocks(t *testing.T) {
	s := pgtest.Shared(t)
	emptyTable(t, s, "autocommitted")
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.Mode = 1, pool.Statement })
	bystander := p.call()
	pid := bystander.must("select pg_backend_pid()")
	for name, ask := range map[string]func(c *caller){
		"simple":          func(c *caller) { c.send(&pgproto3.Query{String: "begin"}) },
		"several at once": func(c *caller) { c.send(&pgproto3.Query{String: "begin; insert into autocommitted values (1)"}) },
		"a failed one":    func(c *caller) { c.send(&pgproto3.Query{String: "begin; select 1/0"}) },
		"extended": func(c *caller) {
			c.send(&pgproto3.Parse{Query: "begin"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
		},
		"start": func(c *caller) { c.send(&pgproto3.Query{String: "start transaction"}) },
		"with more behind": func(c *caller) {
			c.send(&pgproto3.Query{String: "begin"}, &pgproto3.Query{String: "insert into autocommitted values (1)"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := callAt(t, p.Addr)
			ask(c)
			var e *pgproto3.ErrorResponse
			for e == nil || e.Severity != "FATAL" {
				r := c.reply()
				if e = r.err; r.status == 0 && e == nil {
					t.Fatal("the connection ended without an error")
				}
			}
			if e.Code != "08P01" || e.Message != "transaction blocks not allowed in statement pooling mode" {
				t.Errorf("the client was told %s: %s", e.Code, e.Message)
			}
			if got := bystander.must("select pg_backend_pid() || ' ' || (select count(*) from autocommitted)"); got != pid+" 0" {
				t.Errorf("afterwards server process and rows are %s, want %s 0", got, pid)
			}
		})
	}
	// Everything that ends by itself is allowed.
	c := p.call()
	c.must("insert into autocommitted values (1); insert into autocommitted values (2)")
	c.must("begin; insert into autocommitted values (3); commit")
	c.send(&pgproto3.Parse{Query: "insert into autocommitted values (4)"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{})
	c.reply()
	c.send(&pgproto3.Query{String: "copy autocommitted from stdin"})
	until[*pgproto3.CopyInResponse](c)
	c.send(&pgproto3.CopyData{Data: []byte("5\n")}, &pgproto3.CopyDone{})
	c.reply()
	if n := bystander.must("select count(*) from autocommitted"); n != "5" {
		t.Errorf("there are %s rows, want 5", n)
	}
}
