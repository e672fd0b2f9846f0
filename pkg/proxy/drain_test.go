package proxy

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

const shuttingDown = "terminating connection: the pooler is shutting down"

// awaitEnd waits until Run has returned.
func (p *pooler) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("Run has not returned within %v", patience)
	}
	if _, err := p.Snapshot(context.Background()); !errors.Is(err, ErrStopped) {
		t.Errorf("a snapshot after the end: %v", err)
	}
}

// told expects the last word of a client that is sent away.
func told(t *testing.T, c *caller) {
	t.Helper()
	if e := c.fatal(); e.Code != "57P01" || e.Message != shuttingDown {
		t.Errorf("got %s %s, want 57P01 %s", e.Code, e.Message, shuttingDown)
	}
}

func TestADrainWithoutClientsEndsAtOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := pooledPostgres(t, nil)
	c := p.call()
	undisturbed(t, c)
	departures["by Terminate"](c)
	p.quiet(t, 0)
	p.Drain(time.Hour)
	p.awaitEnd(t)
}

// S66
func TestADrainKeepsServingUntilTheLastClientHasLeft(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	ctx := context.Background()
	if err := s.Exec(ctx, "drop table if exists drained; create table drained (x int)"); err != nil {
		t.Fatal(err)
	}
	p := pooledPostgres(t, nil)
	busy, idle := p.call(), p.call()
	busy.must("begin; insert into drained values (1)")
	p.Drain(time.Hour)
	p.await("it drains", func(s Snapshot) bool { return s.Draining })

	undisturbed(t, idle)
	late := p.call() // somebody must serve it
	undisturbed(t, late)
	busy.must("insert into drained values (2)")
	busy.must("commit")
	rows, err := s.Query(ctx, "select count(*) from drained")
	if err != nil || rows[0][0] != "2" {
		t.Errorf("the transaction under way has left %v rows, %v", rows, err)
	}
	for _, c := range []*caller{busy, idle} {
		departures["by Terminate"](c)
	}
	p.await("two have left", func(s Snapshot) bool { return s.Clients == 1 })
	undisturbed(t, late)
	departures["by FIN"](late)
	p.awaitEnd(t)
}

// S66
func TestWhoIsLeftAtTheDrainLimitIsTold(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	ctx := context.Background()
	for _, sql := range []string{"drop database if exists drained with (force)", "create database drained"} {
		if err := s.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.QueryIn(ctx, "drained", "create table drained (x int)"); err != nil {
		t.Fatal(err)
	}
	p := startProxy(t, testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size, r.DBName = 2, "drained" }))
	idle, open, running, waiting := p.call(), p.call(), p.call(), p.call()
	open.must("begin; insert into drained values (1)")
	running.send(&pgproto3.Query{String: "begin; insert into drained values (2); select pg_sleep(3600)"})
	p.await("both server connections are at work", func(s Snapshot) bool { return s.Pools[0].Stats.Active == 2 })
	waiting.send(&pgproto3.Query{String: "insert into drained values (3)"})
	p.await("one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	half := p.raw(t).send(hello("user", "app")[:10])
	p.await("one is in its login", func(s Snapshot) bool { return s.Clients == 5 })

	p.Drain(50 * time.Millisecond)
	for _, c := range []*caller{idle, open, running, waiting} {
		told(t, c)
	}
	half.refused("57P01", shuttingDown)
	p.awaitEnd(t)
	// Nothing runs on without us.
	for deadline := time.Now().Add(patience); ; {
		backends, err := s.Backends(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(backends, func(b pgtest.Backend) bool { return b.Database == "drained" }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind on the server: %+v", backends)
		}
	}
	rows, err := s.QueryIn(ctx, "drained", "select count(*) from drained")
	if err != nil || rows[0][0] != "0" {
		t.Errorf("transactions that were cut off have left %v rows, %v", rows, err)
	}
}

func TestASecondDrainEndsAtOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := pooledPostgres(t, nil)
	c := p.call()
	c.must("begin")
	p.Drain(time.Hour)
	p.await("it drains", func(s Snapshot) bool { return s.Draining })
	c.must("select 1")
	p.Drain(time.Hour)
	told(t, c)
	p.awaitEnd(t)
}

// S65
func TestStoppingASessionPoolWithAQueue(t *testing.T) {
	pgtest.CheckLeaks(t)
	const size = 2
	for _, reset := range []string{"", "DISCARD ALL"} {
		t.Run("reset query "+reset, func(t *testing.T) {
			p := pooledPostgres(t, func(r *Route) {
				r.Pool.Mode, r.Pool.Size, r.Pool.Reset, r.ResetQuery = pool.Session, size, reset != "", reset
			})
			var clients []*caller
			for range 6 {
				clients = append(clients, p.call())
			}
			// The first and the last hold what the others wait for.
			undisturbed(t, clients[0])
			undisturbed(t, clients[len(clients)-1])
			for _, c := range clients[1 : len(clients)-1] {
				c.send(&pgproto3.Query{String: "select 1"})
			}
			p.await("the others wait", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == len(clients)-size })
			p.Stop()
			for _, c := range clients {
				told(t, c)
			}
			p.awaitEnd(t)
		})
	}
}

func TestAClientThatTalksOnIsToldAllTheSame(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	holder, waiting := p.call(), p.call()
	holder.must("begin")
	waiting.send(&pgproto3.Query{String: "select 1"})
	p.await("one waits", func(s Snapshot) bool { return s.Pools[0].Stats.Waiting == 1 })
	waiting.raw([]byte(strings.Repeat(string(packet('Q', "select 1\x00")), 10000))) // nobody reads that
	p.Stop()
	told(t, waiting)
	told(t, holder)
	p.awaitEnd(t)
}

func TestStoppingIsNotHeldUpByServers(t *testing.T) {
	for name, serve := range map[string]func(*pgtest.FakeConn){
		"that do not answer a login": func(c *pgtest.FakeConn) { c.AwaitEnd() },
		"that do not answer a query": func(c *pgtest.FakeConn) { c.Login(); c.AwaitEnd() },
		"that do not hang up": func(c *pgtest.FakeConn) {
			c.Login()
			for {
				c.Send(&pgproto3.NoticeResponse{Message: "and another thing"})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.CheckLeaks(t)
			p, f := pooledFake(t, serve, func(s *Settings, _ *Route) {
				s.ServerConnectTimeout, s.ServerCloseTimeout, s.CancelWaitTimeout = time.Hour, time.Hour, 100*time.Millisecond
			})
			r := p.raw(t).send(hello("user", "app"), packet('Q', "select 1\x00"))
			f.AwaitAccepted(t, 1)
			if !strings.Contains(name, "login") {
				r.until('Z')
				p.await("the query is under way", func(s Snapshot) bool { return s.Pools[0].Counts.Queries == 1 })
			}
			p.Stop()
			_, errs := r.ending()
			if len(errs) != 1 || errs[0].Code != "57P01" {
				t.Errorf("the client was told %+v", errs)
			}
			p.awaitEnd(t)
		})
	}
}

func TestNobodyNewIsTakenWhileStopping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	release := make(chan struct{})
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) { // does not hang up, so that stopping takes a while
		c.Login()
		<-release
	})
	set := fakeSettings(f, nil)
	set.Listeners = append(set.Listeners, Listener{Unix: path, Mode: 0o700, Group: -1, Backlog: 16})
	p := startProxy(t, set)
	p.raw(t).login().send(packet('Q', "select 1\x00"))
	p.await("the query is under way", func(s Snapshot) bool { return s.Pools[0].Counts.Queries == 1 })
	p.Stop()
	p.await("the client is gone", func(s Snapshot) bool { return s.Clients == 0 })
	for network, addr := range map[string]string{"tcp": p.Addr, "unix": path} {
		if conn, err := net.Dial(network, addr); err == nil {
			_ = conn.Close()
			t.Errorf("%s still listens", network)
		}
	}
	p.Stop() // again, which changes nothing
	close(release)
	p.awaitEnd(t)
}
