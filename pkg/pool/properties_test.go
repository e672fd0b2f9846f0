package pool

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world runs a pool against clients that ask, work and think, and a server that logs in, resets and closes, each in its
// own time. It is exact: the same world runs the same way every time.
type world struct {
	ps     *Pools
	now    Time
	events []event // sorted by time, then number
	made   int
	rng    *rand.Rand

	login, closing, reset time.Duration
	quiet                 bool // clients ask no more

	logins, links int
	worked        time.Duration
	longest       map[Key]time.Duration // wait
	t             *testing.T
}

type event struct {
	at Time
	n  int
	do func()
}

type worker struct {
	client      *Client
	work, think time.Duration
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{
		ps: New(seed), rng: rand.New(rand.NewPCG(seed, 2)), longest: map[Key]time.Duration{}, t: t,
		login: 20 * time.Millisecond, closing: time.Millisecond, reset: time.Millisecond,
	}
}

func (w *world) later(d time.Duration, do func()) {
	w.made++
	e := event{at: w.now + d, n: w.made, do: do}
	at, _ := slices.BinarySearchFunc(w.events, e, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n))
	})
	w.events = slices.Insert(w.events, at, e)
}

// pool makes a pool with clients that work and think for those times.
func (w *world) pool(k Key, s Settings, clients int, work, think time.Duration) *Pool {
	p := w.ps.Ensure(w.now, k, s)
	for range clients {
		c := &Client{}
		if err := w.ps.Connect(w.now, p, c); err != nil {
			w.t.Fatal(err)
		}
		m := &worker{client: c, work: work, think: think}
		c.Ref = m
		w.later(w.random(think), func() { w.ask(m) })
	}
	w.settle()
	return p
}

// random is within half of d either way.
func (w *world) random(d time.Duration) time.Duration {
	return d/2 + time.Duration(w.rng.Int64N(int64(d)+1))
}

func (w *world) ask(m *worker) {
	if !w.quiet {
		w.ps.Acquire(w.now, m.client)
	}
}

// settle carries out what the pool asks for.
func (w *world) settle() {
	w.t.Helper()
	for effects := w.ps.Effects(); len(effects) > 0; effects = w.ps.Effects() {
		for _, e := range effects {
			b := e.Backend
			switch e.Kind {
			case Open:
				w.logins++
				w.later(w.random(w.login), func() { w.ps.Opened(w.now, b) })
			case Link:
				w.links++
				m := e.Client.Ref.(*worker)
				k := b.Pool().Key()
				w.longest[k] = max(w.longest[k], w.now-e.Client.Since())
				work := w.random(m.work)
				w.worked += work
				w.later(work, func() {
					w.ps.Release(w.now, b)
					w.later(w.random(m.think), func() { w.ask(m) })
				})
			case Check, Reset:
				w.later(w.random(w.reset), func() { w.ps.Ready(w.now, b) })
			case Close:
				w.later(w.random(w.closing), func() { w.ps.Closed(w.now, b) })
			case Kill, Fail:
				w.t.Fatalf("%v %v: %v", w.now, e.Kind, e.Reason)
			}
		}
	}
	if err := w.ps.check(w.now); err != nil {
		w.t.Fatalf("%v: %v", w.now, err)
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	for end := w.now + d; ; {
		next, pending := w.ps.Next()
		switch {
		case len(w.events) > 0 && w.events[0].at <= end && (!pending || w.events[0].at <= next):
			e := w.events[0]
			w.events = w.events[1:]
			w.now = e.at
			e.do()
		case pending && next <= end:
			w.now = max(w.now, next)
			w.ps.Tick(w.now)
			if again, ok := w.ps.Next(); ok && again <= w.now {
				w.t.Fatalf("%v: after Tick the next one is due at %v", w.now, again)
			}
		default:
			w.now = end
			return
		}
		w.settle()
	}
}

func (w *world) waiting() (n int) {
	for _, p := range w.ps.All() {
		n += p.Stats().Waiting
	}
	return n
}

func TestEveryWaiterIsServedWhenBackendsReturn(t *testing.T) {
	seeds := uint64(30)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		w := newWorld(t, seed)
		r := w.rng
		w.ps.SetCapacity(0, "h", 1+r.IntN(4), Never)
		for i := range 3 {
			w.ps.SetLimit(0, DatabaseBackends, fmt.Sprint("d", i), r.IntN(3))
			w.ps.SetLimit(0, UserBackends, fmt.Sprint("u", i), r.IntN(3))
		}
		for i := range 5 {
			s := Settings{
				Server: "h", Mode: Transaction, Size: r.IntN(4), MinSize: r.IntN(2), ServerLifetime: pick(r, 0, time.Minute),
				ServerIdleTimeout: pick(r, 0, time.Second), Check: r.IntN(2) == 0, Reset: r.IntN(2) == 0, MaxConnecting: 1 + r.IntN(3),
			}
			w.pool(Key{fmt.Sprint("d", i%3), fmt.Sprint("u", i/2)}, s, 1+r.IntN(6), pick(r, time.Millisecond, 50*time.Millisecond), pick(r, 0, 100*time.Millisecond))
		}
		w.run(5 * time.Second)
		w.quiet = true
		w.run(20 * time.Second)
		if n := w.waiting(); n > 0 {
			t.Errorf("seed %d: %d clients still wait 20 s after the last request", seed, n)
		}
	}
}

func TestAPoolThatHoldsNothingIsNotStarvedByBusyOnes(t *testing.T) {
	w := newWorld(t, 1)
	w.ps.SetCapacity(0, "h", 3, Never)
	s := Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour, MaxConnecting: 3}
	w.pool(Key{"shop", "busy"}, s, 40, 10*time.Millisecond, 0)
	w.run(time.Second)
	rare := w.pool(Key{"shop", "rare"}, s, 1, 10*time.Millisecond, 500*time.Millisecond)
	w.run(time.Minute)
	// The queue of the busy pool takes 40/3 * 10 ms; then come the turn of a backend, a close and a login.
	if wait := w.longest[Key{"shop", "rare"}]; wait > time.Second {
		t.Errorf("the rare client waited for %v", wait)
	}
	if n := rare.Stats().Assignments; n < 60 {
		t.Errorf("the rare client was served %d times in a minute", n)
	}
}

func TestTurnsDoNotEatTheSlotsTheyShare(t *testing.T) {
	for _, login := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond} {
		w := newWorld(t, 2)
		w.login = login
		w.ps.SetCapacity(0, "h", 2, Never)
		s := Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour, MaxConnecting: 5}
		for i := range 5 {
			w.pool(Key{fmt.Sprint("d", i), "u"}, s, 5, 2*time.Millisecond, 0)
		}
		const span = 10 * time.Second
		w.run(span)
		// Logins take a fifth of two slots at most; closing and the last transaction of a turn cost a little more.
		if share := float64(w.worked) / float64(2*span); share < 0.6 {
			t.Errorf("login %v: %d logins for %d transactions: worked %.0f %% of the time", login, w.logins, w.links, 100*share)
		}
		for k, wait := range w.longest {
			if wait > 5*time.Second {
				t.Errorf("login %v: a client of %v waited for %v", login, k, wait)
			}
		}
		if len(w.longest) != 5 {
			t.Errorf("login %v: %d of 5 pools were served", login, len(w.longest))
		}
	}
}

func TestAWaiterBehindTwoLimitsIsServed(t *testing.T) {
	w := newWorld(t, 3)
	w.ps.SetLimit(0, DatabaseBackends, "shop", 2)
	w.ps.SetLimit(0, UserBackends, "ann", 2)
	s := Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour, MaxConnecting: 2}
	w.pool(Key{"shop", "bob"}, s, 20, 10*time.Millisecond, 0)
	w.pool(Key{"blog", "ann"}, s, 20, 10*time.Millisecond, 0)
	w.run(time.Second)
	both := w.pool(Key{"shop", "ann"}, s, 1, 10*time.Millisecond, 100*time.Millisecond)
	w.run(time.Minute)
	if n := both.Stats().Assignments; n < 15 || w.longest[Key{"shop", "ann"}] > 4*time.Second {
		t.Errorf("the client behind both limits was served %d times, and waited for up to %v", n, w.longest[Key{"shop", "ann"}])
	}
}

func TestCapacityGrowthServesAtOnce(t *testing.T) {
	for seed := range uint64(30) {
		w := newWorld(t, seed)
		r := w.rng
		w.login, w.closing = time.Hour, time.Hour // nothing but the growth itself may serve
		w.ps.SetCapacity(0, "h", 0, Never)
		want := 0
		for i := range 4 {
			s := Settings{Server: "h", Mode: Transaction, Size: r.IntN(5), ServerLifetime: time.Hour, MaxConnecting: 1 + r.IntN(4)}
			clients := r.IntN(6)
			w.pool(Key{fmt.Sprint("d", i), "u"}, s, clients, time.Second, 0)
			limit := s.MaxConnecting
			if s.Size > 0 {
				limit = min(limit, s.Size)
			}
			want += min(clients, limit)
		}
		w.run(time.Second)
		capacity := r.IntN(12)
		w.ps.SetCapacity(w.now, "h", capacity, Never)
		w.settle()
		if want = min(want, capacity); w.logins != want {
			t.Errorf("seed %d: capacity %d opened %d, want %d", seed, capacity, w.logins, want)
		}
	}
}

// TestTheOldestWaiterGetsTheFirstFreeSlot looks at which pool a slot goes to.
func TestTheOldestWaiterGetsTheFirstFreeSlot(t *testing.T) {
	for seed := range uint64(30) {
		w := newWorld(t, seed)
		w.ps.SetCapacity(0, "h", 0, Never)
		s := Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour}
		for i := range 6 {
			w.pool(Key{fmt.Sprint("d", i), "u"}, s, 1, time.Second, time.Second)
		}
		w.run(10 * time.Second)
		pools := w.ps.All()
		slices.SortFunc(pools, func(a, b *Pool) int { return cmp.Compare(a.Stats().OldestWait, b.Stats().OldestWait) })
		for n, p := range pools {
			w.ps.SetCapacity(w.now, "h", n+1, Never)
			if e := w.ps.Effects(); len(e) != 1 || e[0].Kind != Open || e[0].Backend.Pool() != p {
				t.Fatalf("seed %d: slot %d went to %v, not to %v", seed, n, e, p.Key())
			}
		}
	}
}
