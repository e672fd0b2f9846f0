package pool

import (
	"testing"
	"time"
)

// warm makes a pool with n idle backends that are like what they are given.
func warm(t *testing.T, size int, likes ...any) (*Pools, *Pool, []*Backend) {
	t.Helper()
	ps := New(1)
	p := ps.Ensure(0, Key{"d", "u"}, Settings{Mode: Transaction, Size: size, MinSize: len(likes), MaxConnecting: len(likes), ServerLifetime: time.Hour, KeepWarm: true})
	var backends []*Backend
	for _, e := range ps.Effects() {
		if e.Kind == Open {
			backends = append(backends, e.Backend)
		}
	}
	for i, b := range backends {
		b.Like = likes[i]
		ps.Opened(0, b)
	}
	ps.Effects()
	if len(backends) != len(likes) {
		t.Fatalf("%d backends were opened", len(backends))
	}
	return ps, p, backends
}

func connected(t *testing.T, ps *Pools, p *Pool, like any) *Client {
	t.Helper()
	c := &Client{Like: like}
	if err := ps.Connect(0, p, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// S5
func TestAClientGetsABackendThatSuitsIt(t *testing.T) {
	ps, p, backends := warm(t, 3, "a", "b", "a")
	for _, c := range []struct {
		like any
		want int
	}{{"b", 1}, {"c", 2}, {"a", 0}} { // the latest idle one suits who finds none
		client := connected(t, ps, p, c.like)
		ps.Acquire(1, client)
		if client.Backend() != backends[c.want] {
			t.Errorf("a client like %v got another backend", c.like)
		}
	}
}

func TestAnExchangedBackendCostsNobodyItsPlace(t *testing.T) {
	ps, p, backends := warm(t, 1, "a")
	first, second := connected(t, ps, p, "b"), connected(t, ps, p, "b")
	ps.Acquire(1, first)
	ps.Acquire(2, second)
	ps.Exchange(3, backends[0], ForeignParameter)
	if !first.Waiting() || first.Since() != 1 || first.Backend() != nil || backends[0].State() != Closing {
		t.Fatalf("waiting %v since %v, the backend is %v", first.Waiting(), first.Since(), backends[0].State())
	}
	ps.Closed(4, backends[0])
	var opened *Backend
	for _, e := range ps.Effects() {
		if e.Kind == Open {
			opened = e.Backend
		}
	}
	if opened == nil {
		t.Fatal("no other backend is opened")
	}
	ps.Opened(5, opened)
	if first.Backend() != opened || !second.Waiting() {
		t.Error("the first client lost its place")
	}
	ps.Retire(6, p)
	ps.Exchange(7, opened, ForeignParameter)
	failed := false
	for _, e := range ps.Effects() {
		failed = failed || e.Kind == Fail && e.Client == first && e.Reason == DatabaseRemoved
	}
	if !failed || first.Waiting() {
		t.Error("a client waits for a database that was removed")
	}
}

func TestPinnedBackendsGoLast(t *testing.T) {
	ps, p, _ := warm(t, 3, "a", "a", "a")
	var clients []*Client
	for i := range 3 {
		c := connected(t, ps, p, "a")
		c.Pinned = i == 2
		ps.Acquire(Time(i), c)
		clients = append(clients, c)
	}
	pinned := clients[2].Backend()
	ps.Effects()
	ps.SetCapacity(10, "", 1, 10)
	for _, e := range ps.Effects() {
		if e.Kind == Kill && e.Backend == pinned {
			t.Error("a pinned backend was killed before the others")
		}
	}
}
