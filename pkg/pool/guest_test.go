package pool

import (
	"errors"
	"testing"
	"time"
)

func TestAVisitorCountsInNoLimitOnClients(t *testing.T) {
	ps := New(1)
	p := ps.Ensure(0, Key{"db", "user"}, Settings{Size: 1, ServerLifetime: time.Hour})
	ps.SetLimit(0, AllClients, "", 1)
	ps.SetLimit(0, UserClients, "user", 1)
	var visitor, second, client, late Client
	for _, c := range []*Client{&visitor, &second} {
		if err := ps.Visit(0, p, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := ps.Connect(0, p, &client); err != nil {
		t.Fatalf("a visitor takes a client's place: %v", err)
	}
	if err := ps.Connect(0, p, &late); err == nil {
		t.Fatal("the limit does not hold")
	}
	ps.Acquire(0, &visitor)
	b := ps.Effects()[0].Backend
	ps.Opened(0, b)
	if visitor.Backend() != b {
		t.Fatal("a visitor gets no backend")
	}
	ps.Acquire(0, &client)
	ps.Release(0, b)
	if client.Backend() != b {
		t.Fatal("a visitor does not stand in line")
	}
	ps.Disconnect(0, &visitor)
	ps.Disconnect(0, &second)
	if err := ps.Connect(0, p, &late); err == nil {
		t.Fatal("a visitor that leaves makes room for a client")
	}
	if n := p.Stats().Clients; n != 1 {
		t.Errorf("%d clients are left", n)
	}
	ps.Retire(0, p)
	if err := ps.Visit(0, p, &visitor); !errors.Is(err, ErrRemoved) {
		t.Errorf("a visit to a retired pool: %v", err)
	}
}
