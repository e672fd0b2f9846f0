package proxy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// crowd is clients that move money between accounts, each transaction in several round trips.
type crowd struct {
	over  chan struct{}
	ended sync.WaitGroup
	done  atomic.Int64 // transactions
	lost  atomic.Int64 // transactions that a crash ended
}

const accounts = 64

// lawful are the ways in which a client may be told that its server connection is lost.
func lawful(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "08P01": // the pooler's
		return pgErr.Message == "server conn crashed?"
	case "57P01", "57P02": // the server's own last words
		return true
	}
	return false
}

// crowded lets n clients work until stop. A client that is told of the loss of its server connection, in the midst of a
// transaction, connects again; anything else fails the test.
func crowded(t *testing.T, p *pooler, n int) (c *crowd, stop func()) {
	t.Helper()
	c = &crowd{over: make(chan struct{})}
	for i := range n {
		c.ended.Go(func() { c.work(t, p, i) })
	}
	var once sync.Once
	stop = func() {
		once.Do(func() { close(c.over) })
		c.ended.Wait()
	}
	t.Cleanup(stop)
	return c, stop
}

func (c *crowd) work(t *testing.T, p *pooler, i int) {
	ctx := context.Background()
	cfg, err := pgx.ParseConfig("postgres://app@" + p.Addr + "/app?sslmode=disable")
	if err != nil {
		t.Error(err)
		return
	}
	if i%2 == 0 {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	} else {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	var conn *pgx.Conn
	for {
		select {
		case <-c.over:
			if conn != nil {
				_ = conn.Close(ctx)
			}
			return
		default:
		}
		if conn == nil {
			if conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
				t.Errorf("connect: %v", err)
				return
			}
		}
		err := move(ctx, conn, i%accounts, (i*7+1)%accounts)
		switch {
		case err == nil:
			c.done.Add(1)
		case lawful(err):
			c.lost.Add(1)
			if !conn.IsClosed() {
				t.Errorf("the connection is open after %v", err)
			}
			conn = nil
		default:
			t.Errorf("a client was told %v", err)
			return
		}
	}
}

// move moves money. In order of the accounts, so that there is no deadlock.
func move(ctx context.Context, conn *pgx.Conn, a, b int) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	for _, step := range [][2]int{{min(a, b), 1}, {max(a, b), -1}} {
		if _, err := tx.Exec(ctx, "update accounts set balance = balance + $1 where id = $2", step[1], step[0]); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}

// bank is a PostgreSQL of its own with accounts, and a proxy before it.
func bank(t *testing.T) (*pgtest.Server, *pooler) {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{})
	if err := s.Exec(t.Context(), fmt.Sprintf("create table accounts (id int primary key, balance int); insert into accounts select g, 0 from generate_series(0, %d) g", accounts-1)); err != nil {
		t.Fatal(err)
	}
	return s, startProxy(t, testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size, r.Pool.QueryWaitTimeout = 8, time.Minute }))
}

// balanced insists that no transaction was done by half, and that the pooler has recovered.
func balanced(t *testing.T, s *pgtest.Server, p *pooler) {
	t.Helper()
	rows, err := s.Query(t.Context(), "select sum(balance) from accounts")
	if err != nil || rows[0][0] != "0" {
		t.Errorf("the balances sum up to %v, %v", rows, err)
	}
	p.await("nothing is left of the clients", func(s Snapshot) bool {
		if len(s.Pools) != 1 {
			return false
		}
		st := s.Pools[0].Stats
		return s.Clients == 0 && st.Clients == 0 && st.Waiting+st.Opening+st.Active+st.Testing+st.Closing == 0 && s.BuffersLent == 0
	})
	if n := p.state().Servers; n > 8 {
		t.Errorf("there are %d server connections, 8 are allowed", n)
	}
}

// working waits until the crowd has done a number of further transactions.
func (c *crowd) working(t *testing.T, p *pooler, more int64) {
	t.Helper()
	before := c.done.Load()
	p.await("clients work", func(Snapshot) bool { return c.done.Load() >= before+more || t.Failed() })
}

func TestABackendThatIsKilledUnderLoad(t *testing.T) {
	s, p := bank(t)
	c, stop := crowded(t, p, 64)
	for range 2 {
		c.working(t, p, 100)
		victims, err := s.Backends(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range victims {
			if v.Application != "pgtest" {
				// PostgreSQL ends all others too, since this one may have left anything behind.
				before := c.lost.Load()
				if err := syscall.Kill(v.PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				p.await("transactions are lost", func(Snapshot) bool { return c.lost.Load() > before || t.Failed() })
				break
			}
		}
	}
	c.working(t, p, 100)
	stop()
	balanced(t, s, p)
	t.Logf("%d transactions, %d lost", c.done.Load(), c.lost.Load())
	if c.lost.Load() == 0 {
		t.Error("no transaction was lost: nothing was killed under load")
	}
}

// S40
func TestABackendThatIsTerminatedUnderLoad(t *testing.T) {
	s, p := bank(t)
	c, stop := crowded(t, p, 64)
	for range 3 {
		c.working(t, p, 100)
		if err := s.Exec(t.Context(), "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 3"); err != nil {
			t.Fatal(err)
		}
	}
	c.working(t, p, 100)
	stop()
	balanced(t, s, p)
	t.Logf("%d transactions, %d lost", c.done.Load(), c.lost.Load())
}

func TestAServerThatIsAwayForAWhileUnderLoad(t *testing.T) {
	for name, end := range map[string]func(*pgtest.Server){
		"kill -9":       func(s *pgtest.Server) { s.Kill9() },
		"fast shutdown": func(s *pgtest.Server) { s.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			s, p := bank(t)
			bystander := p.call() // idle all the time
			bystander.must("select 1")
			c, stop := crowded(t, p, 64)
			for range 2 {
				c.working(t, p, 100)
				end(s)
				p.await("all server connections are gone", func(s Snapshot) bool { return s.Servers == 0 })
				p.await("clients wait", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting > 30 })
				if err := s.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			c.working(t, p, 100)
			if got := bystander.must("select 'still here'"); got != "still here" {
				t.Errorf("the idle client got %q", got)
			}
			departures["by Terminate"](bystander)
			stop()
			balanced(t, s, p)
			t.Logf("%d transactions, %d lost", c.done.Load(), c.lost.Load())
		})
	}
}
