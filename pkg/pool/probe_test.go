package pool

import (
	"testing"
	"time"
)

func TestARefusedProbePutsNothingOffAndFailsNobody(t *testing.T) {
	ps := New(1)
	p := ps.Ensure(0, Key{"shop", "ann"}, Settings{Size: 1, LoginRetry: time.Minute})
	var waiter, other Client
	for _, c := range []*Client{&waiter, &other} {
		if err := ps.Connect(0, p, c); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Second
	ps.Tick(now)
	for range 10 { // as many failed attempts of the pool itself would put it off for a minute
		b := ps.Probe(now, p, 0)
		if b == nil {
			t.Fatal("no room for a probe in an empty pool")
		}
		ps.Acquire(now, &waiter)
		ps.Refused(now, b)
		if e := ps.Effects(); len(e) != 1 || e[0].Kind != Open {
			t.Fatalf("a waiter behind a refused probe gets %v, want an attempt of its own", e)
		}
		if !waiter.Waiting() {
			t.Fatal("the waiter does not wait any more")
		}
		ps.Disconnect(now, &waiter)
		ps.Opened(now, p.all.head)
		ps.Discard(now, p.all.head, AdminKilled)
		ps.Closed(now, p.all.head)
		if err := ps.Connect(now, p, &waiter); err != nil {
			t.Fatal(err)
		}
		ps.Effects()
	}
	if s := p.Stats(); s.OpenFailures != 10 || s.Opening+s.Closing != 0 {
		t.Errorf("got %+v, want 10 failures and nothing open", s)
	}
}

func TestAProbeThatWasKilledIsClosedWhenItIsRefused(t *testing.T) {
	ps := New(1)
	p := ps.Ensure(0, Key{"shop", "ann"}, Settings{Server: "h"})
	b := ps.Probe(0, p, 0)
	ps.SetCapacity(0, "h", 0, 0)
	if b.State() != Closing {
		t.Fatalf("a probe above the capacity is %v", b.State())
	}
	ps.Refused(0, b)
	if open, _, _, _ := ps.ServerStats("h"); open != 0 {
		t.Errorf("%d slots are still held", open)
	}
}
