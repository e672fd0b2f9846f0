package proxy

import (
	"context"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

func TestAQueryIsAnsweredThroughThePool(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := pooledPostgres(t, nil)
	c := p.connect()
	var n int
	if err := c.QueryRow(context.Background(), "select 41+1").Scan(&n); err != nil || n != 42 {
		t.Fatalf("got %d, %v", n, err)
	}
}

func TestManyClientsShareFewServerConnections(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 2 })
	for range 20 {
		c := p.connect()
		if _, err := c.Exec(context.Background(), "select 1"); err != nil {
			t.Fatal(err)
		}
	}
	s := p.state()
	if s.Servers > 2 || s.Clients != 20 {
		t.Fatalf("%d clients on %d server connections, want 20 on at most 2", s.Clients, s.Servers)
	}
}

func TestSessionModeKeepsTheServerConnection(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Mode = pool.Session; r.Pool.Reset = true; r.ResetQuery = "DISCARD ALL" })
	ctx := context.Background()
	a, b := p.connect(), p.connect()
	if _, err := a.Exec(ctx, "create temp table mine (x int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Exec(ctx, "select * from mine"); err == nil {
		t.Fatal("another session sees the temporary table")
	}
	if _, err := a.Exec(ctx, "select * from mine"); err != nil {
		t.Fatal(err)
	}
	_ = a.Close(ctx)
	p.await("the session's connection is idle again", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Idle > 0 })
	c := p.connect()
	if _, err := c.Exec(ctx, "select * from mine"); err == nil {
		t.Fatal("the reset query did not run between sessions")
	}
}
