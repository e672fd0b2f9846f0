package pool

import (
	"fmt"
	"testing"
	"time"
)

// hot is a pool with idle backends and connected clients, and what a caller does to drain effects.
type hot struct {
	ps      *Pools
	now     Time
	clients []*Client
}

func newHot(t testing.TB, clients, backends int) *hot {
	h := &hot{ps: New(1)}
	h.ps.SetCapacity(0, "h", backends, Never)
	p := h.ps.Ensure(0, Key{"shop", "ann"}, Settings{
		Server: "h", Mode: Transaction, Size: backends, QueryWaitTimeout: time.Minute, ServerLifetime: time.Hour,
		ServerIdleTimeout: 10 * time.Minute, Check: true, CheckDelay: 30 * time.Second, MaxConnecting: backends,
	})
	for range clients {
		c := &Client{}
		if err := h.ps.Connect(0, p, c); err != nil {
			t.Fatal(err)
		}
		h.clients = append(h.clients, c)
	}
	for _, c := range h.clients[:backends] {
		h.ps.Acquire(0, c)
	}
	for range 3 { // also lets the two buffers of effects reach their size
		for _, e := range append([]Effect(nil), h.ps.Effects()...) {
			switch e.Kind {
			case Open:
				h.ps.Opened(0, e.Backend)
			case Link:
				h.ps.Release(0, e.Backend)
			}
		}
	}
	if got := p.Stats().Idle; got != backends {
		t.Fatalf("%d of %d backends are idle", got, backends)
	}
	return h
}

// others adds pools under the same capacity that wait for a slot which nobody gives up: their waiters are the youngest.
func (h *hot) others(t testing.TB, n int) {
	for i := range n {
		p := h.ps.Ensure(h.now, Key{fmt.Sprint("d", i), "u"}, Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour})
		c := &Client{}
		if err := h.ps.Connect(h.now, p, c); err != nil {
			t.Fatal(err)
		}
		h.ps.Acquire(time.Hour, c)
	}
	h.ps.Effects()
}

func (h *hot) drain(want EffectKind) *Backend {
	effects := h.ps.Effects()
	if len(effects) != 1 || effects[0].Kind != want {
		panic(fmt.Sprintf("want one %v, got %v", want, effects))
	}
	return effects[0].Backend
}

// transaction is the path of a transaction that finds an idle backend.
func (h *hot) transaction() {
	h.now += time.Microsecond
	h.ps.Acquire(h.now, h.clients[0])
	b := h.drain(Link)
	h.now += time.Microsecond
	h.ps.Release(h.now, b)
	if len(h.ps.Effects()) != 0 {
		panic("a release without waiters has effects")
	}
}

// handOff is the path of a transaction that waits: one client releases what the other then gets.
func (h *hot) handOff(turn int) {
	from, to := h.clients[turn%2], h.clients[1-turn%2]
	h.now += time.Microsecond
	h.ps.Acquire(h.now, to)
	h.ps.Effects()
	h.ps.Release(h.now, from.Backend())
	h.drain(Link)
	h.ps.Next()
}

func TestTransactionsDoNotAllocate(t *testing.T) {
	h := newHot(t, 4, 2)
	if n := testing.AllocsPerRun(1000, h.transaction); n != 0 {
		t.Errorf("a transaction that finds an idle backend allocates %v times", n)
	}
	h = newHot(t, 2, 1)
	h.ps.Acquire(h.now, h.clients[0])
	h.drain(Link)
	turn := 0
	if n := testing.AllocsPerRun(1000, func() { h.handOff(turn); turn++ }); n != 0 {
		t.Errorf("a transaction that waits allocates %v times", n)
	}
	h.others(t, 20)
	if n := testing.AllocsPerRun(1000, func() { h.handOff(turn); turn++ }); n != 0 {
		t.Errorf("a transaction that waits beside 20 pools that wait too allocates %v times", n)
	}
}

func TestATickWithNothingDueDoesNotAllocate(t *testing.T) {
	h := newHot(t, 4, 2)
	h.others(t, 200)
	if n := testing.AllocsPerRun(1000, func() { h.ps.Tick(h.now); h.ps.Next() }); n != 0 {
		t.Errorf("a tick allocates %v times", n)
	}
}

func BenchmarkTransaction(b *testing.B) {
	h := newHot(b, 4, 2)
	b.ReportAllocs()
	for b.Loop() {
		h.transaction()
	}
}

func BenchmarkHandOff(b *testing.B) {
	for _, others := range []int{0, 1, 10, 100} {
		b.Run(fmt.Sprintf("beside %d hungry pools", others), func(b *testing.B) {
			h := newHot(b, 2, 1)
			h.ps.Acquire(h.now, h.clients[0])
			h.drain(Link)
			h.others(b, others)
			b.ReportAllocs()
			turn := 0
			for b.Loop() {
				h.handOff(turn)
				turn++
			}
		})
	}
}

func BenchmarkTick(b *testing.B) {
	h := newHot(b, 4, 2)
	h.others(b, 1000)
	b.ReportAllocs()
	for b.Loop() {
		h.now += time.Microsecond
		h.ps.Tick(h.now)
		h.ps.Next()
	}
}
