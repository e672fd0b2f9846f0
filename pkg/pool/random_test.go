package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAgreesWithItsTwin makes random calls on the pool and on its twin, over many seeds and settings, and compares every
// effect and every number. Beside that it keeps its own books of the two promises that matter most: nobody is
// overtaken, and no limit is passed.
//
// M14
func TestAgreesWithItsTwin(t *testing.T) {
	seeds, steps := uint64(150), 300
	if testing.Short() {
		seeds = 20
	}
	seen := map[string]int{}
	for seed := range seeds {
		d := newDriver(seed)
		for step := range steps {
			if err := d.step(); err != nil {
				t.Fatalf("seed %d step %d: %v\n%s", seed, step, err, strings.Join(d.log[max(0, len(d.log)-40):], "\n"))
			}
		}
		for what, n := range d.seen {
			seen[what] += n
		}
		seen["kept"] += d.twin.kept
	}
	// A run that never came to what matters proves nothing.
	for kind := Open; kind <= Fail; kind++ {
		if seen[kind.String()] == 0 {
			t.Errorf("no %v in all runs", kind)
		}
	}
	for reason := ServerIdleTimeout; reason <= LoginFailed; reason++ {
		if seen[reason.String()] == 0 {
			t.Errorf("nothing closed or failed for %q in all runs", reason)
		}
	}
	for _, what := range []string{"turn", "kept", "reserve", "grown", "client limit", "probe", "pressed role", "pressed database", "pressed server", AddressGone.String()} {
		if seen[what] == 0 {
			t.Errorf("no %s in all runs", what)
		}
	}
}

// driver owns both, and what the caller of a pool owns.
type driver struct {
	rng      *rand.Rand
	now      Time
	ps       *Pools
	twin     *twin
	pools    []*driverPool
	clients  []*Client // Ref is their number
	backends []*Backend
	opened   int
	retires  bool
	tight    bool
	log      []string
	wrong    error // of the call just made
	seen     map[string]int
}

type driverPool struct {
	real  *Pool
	twin  *twinPool
	queue []*Client
}

func newDriver(seed uint64) *driver {
	d := &driver{rng: rand.New(rand.NewPCG(seed, 1)), ps: New(seed), twin: newTwin(seed), seen: map[string]int{}}
	d.retires = seed%3 == 0
	if d.tight = seed%4 == 1; d.tight { // so that pools need slots under two limits
		for i := range 3 {
			d.setLimit(DatabaseBackends, "abc"[i:i+1], 1+i/2)
			d.setLimit(UserBackends, "uvw"[i:i+1], 1+i/2)
		}
	}
	d.clients = make([]*Client, 24)
	for i := range d.clients {
		d.clients[i] = &Client{Ref: i + 1}
	}
	return d
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

func (d *driver) settings(server string) Settings {
	r := d.rng
	return Settings{
		Server:            server,
		Mode:              pick(r, Session, Transaction, Transaction, Statement),
		Size:              pick(r, 0, 1, 2, 3, 5),
		MinSize:           pick(r, 0, 0, 0, 1, 2, 9),
		ReserveSize:       pick(r, 0, 0, 1, 2),
		ReserveTimeout:    pick(r, 0, time.Second, 3*time.Second),
		QueryWaitTimeout:  pick(r, 0, 2*time.Second, 20*time.Second),
		ServerLifetime:    pick(r, 0, 10*time.Second, time.Hour, time.Hour),
		ServerIdleTimeout: pick(r, 0, 5*time.Second, 10*time.Minute),
		CheckDelay:        pick(r, 0, time.Second, 30*time.Second),
		Check:             pick(r, true, false, false),
		Reset:             pick(r, true, false, false),
		RoundRobin:        pick(r, true, false, false),
		KeepWarm:          pick(r, true, false, false, false),
		MaxConnecting:     pick(r, 0, 1, 2, 5),
		LoginRetry:        pick(r, 0, time.Second, 15*time.Second),
	}
}

// step makes one random call that makes sense.
func (d *driver) step() error {
	r := d.rng
	if len(d.pools) == 0 {
		return d.compare(d.ensure())
	}
	p := pick(r, d.pools...)
	var what string
	switch n := r.IntN(100); {
	case n < 6:
		what = d.ensure()
	case n < 14:
		what = d.connect(p)
	case n < 17:
		what = d.onClient(func(c *Client) bool { return c.pool != nil && c.backend == nil }, d.disconnect)
	case n < 37:
		what = d.onClient(func(c *Client) bool { return c.pool != nil && c.backend == nil && !c.waiting }, d.acquire)
	case n < 52:
		what = d.onBackend(Opening, "opened", func(b *Backend, id int) {
			d.ps.Opened(d.now, b)
			d.twin.openedCall(d.now, id)
		})
	case n < 55:
		permanent := r.IntN(2) == 0
		what = d.onBackend(Opening, fmt.Sprint("failed ", permanent), func(b *Backend, id int) {
			d.ps.OpenFailed(d.now, b, permanent)
			d.twin.openFailed(d.now, id, permanent)
		})
	case n < 58:
		by := pick(r, OnRole, OnDatabase, OnServer)
		what = d.onBackend(Opening, fmt.Sprint("pressed ", by), func(b *Backend, id int) {
			d.ps.Pressed(d.now, b, by)
			d.twin.pressed(d.now, id, by)
			d.seen["pressed "+by.String()]++
		})
	case n < 59:
		what = d.onBackend(pick(r, Opening, Idle, Active, Testing), "dismiss", func(b *Backend, id int) {
			d.ps.Dismiss(d.now, b, AddressGone)
			d.twin.dismiss(d.now, id, AddressGone)
		})
	case n < 67:
		what = d.onBackend(Active, "release", func(b *Backend, id int) {
			d.ps.Release(d.now, b)
			d.twin.release(d.now, id, true)
		})
	case n < 73:
		what = d.onBackend(Testing, "ready", func(b *Backend, id int) {
			d.ps.Ready(d.now, b)
			d.twin.release(d.now, id, false)
		})
	case n < 75:
		what = d.onBackend(Active, "unlink", func(b *Backend, id int) {
			d.ps.Unlink(d.now, b)
			d.twin.unlink(d.now, id)
		})
	case n < 78:
		what = d.onBackend(pick(r, Opening, Idle, Active, Testing), "discard", func(b *Backend, id int) {
			d.ps.Discard(d.now, b, ServerCrashed)
			d.twin.discard(d.now, id)
		})
	case n < 86:
		what = d.onBackend(Closing, "closed", func(b *Backend, id int) {
			d.ps.Closed(d.now, b)
			d.twin.closed(d.now, id)
		})
	case n < 94:
		what = d.tick()
	case n < 95:
		what = d.limit()
	case n < 96:
		what = d.probe(p)
	case n < 98:
		server := pick(r, "h", "i")
		capacity := pick(r, -1, 0, 1, 2, 3, 5)
		deadline := pick(r, Never, d.now, d.now+time.Second, d.now+10*time.Second)
		what = fmt.Sprintf("capacity %s %d by %v", server, capacity, deadline)
		d.ps.SetCapacity(d.now, server, capacity, deadline)
		d.twin.setCapacity(d.now, server, capacity, deadline)
		if slices.ContainsFunc(d.ps.effects, func(e Effect) bool { return e.Kind == Open }) {
			d.seen["grown"]++
		}
	case n < 99:
		s := d.settings(pick(r, p.real.settings.Server, p.real.settings.Server, "h", "i"))
		what = fmt.Sprintf("reconfigure %v %+v", p.real.key, s)
		d.ps.Reconfigure(d.now, p.real, s)
		d.twin.reconfigure(d.now, p.twin, s)
	default:
		if d.retires && r.IntN(2) == 0 && !p.real.retired {
			what = fmt.Sprint("retire ", p.real.key)
			d.ps.Retire(d.now, p.real)
			d.twin.retire(d.now, p.twin)
		} else {
			what = fmt.Sprint("recycle ", p.real.key)
			d.ps.Recycle(d.now, p.real)
			d.twin.recycle(d.now, p.twin)
		}
	}
	return d.compare(what)
}

func (d *driver) ensure() string {
	k := Key{pick(d.rng, "a", "b", "c"), pick(d.rng, "u", "v", "w")}
	s := d.settings(map[string]string{"a": "h", "b": "h", "c": "i"}[k.Database])
	if d.ps.Lookup(k) == nil {
		d.pools = append(d.pools, &driverPool{})
		p := d.pools[len(d.pools)-1]
		p.real = d.ps.Ensure(d.now, k, s)
		p.twin = d.twin.ensure(d.now, k, s)
	}
	return fmt.Sprintf("ensure %v %+v", k, s)
}

func (d *driver) poolOf(p *Pool) *driverPool {
	return d.pools[slices.IndexFunc(d.pools, func(o *driverPool) bool { return o.real == p })]
}

func (d *driver) onClient(fits func(*Client) bool, call func(*Client, int) string) string {
	var fitting []*Client
	for _, c := range d.clients {
		if fits(c) {
			fitting = append(fitting, c)
		}
	}
	if len(fitting) == 0 {
		return "nothing"
	}
	c := pick(d.rng, fitting...)
	return call(c, c.Ref.(int))
}

func (d *driver) connect(p *driverPool) string {
	if p.real.retired {
		if err := d.ps.Connect(d.now, p.real, &Client{}); !errors.Is(err, ErrRemoved) {
			d.wrong = fmt.Errorf("connect to a retired pool: %w", err)
		}
		return "connect to a retired pool"
	}
	return d.onClient(func(c *Client) bool { return c.pool == nil }, func(c *Client, id int) string {
		got, want := fmt.Sprint(d.ps.Connect(d.now, p.real, c)), fmt.Sprint(d.twin.connect(d.now, p.twin))
		if got != want {
			d.wrong = fmt.Errorf("connect: got %s, want %s", got, want)
		}
		if c.pool == nil {
			d.seen["client limit"]++
		}
		return fmt.Sprintf("connect %v c%d: %s", p.real.key, id, got)
	})
}

func (d *driver) disconnect(c *Client, id int) string {
	p := d.poolOf(c.pool)
	p.queue = slices.DeleteFunc(p.queue, func(o *Client) bool { return o == c })
	d.ps.Disconnect(d.now, c)
	d.twin.disconnect(d.now, p.twin, id)
	return fmt.Sprintf("disconnect c%d", id)
}

func (d *driver) acquire(c *Client, id int) string {
	p := d.poolOf(c.pool)
	p.queue = append(p.queue, c)
	d.ps.Acquire(d.now, c)
	d.twin.acquire(d.now, p.twin, id)
	return fmt.Sprintf("acquire c%d", id)
}

func (d *driver) onBackend(s State, name string, call func(*Backend, int)) string {
	var fitting []*Backend
	for _, b := range d.backends {
		if b.state == s {
			fitting = append(fitting, b)
		}
	}
	if len(fitting) == 0 {
		return "nothing"
	}
	b := pick(d.rng, fitting...)
	call(b, b.Ref.(int))
	return fmt.Sprintf("%s b%d", name, b.Ref)
}

func (d *driver) probe(p *driverPool) string {
	spare := d.rng.IntN(2)
	got := 0
	if b := d.ps.Probe(d.now, p.real, spare); b != nil {
		d.opened++
		got = d.opened
		b.Ref = got
		d.backends = append(d.backends, b)
		d.seen["probe"]++
	}
	if want := d.twin.probe(d.now, p.twin, spare); got != want {
		d.wrong = fmt.Errorf("probe of %v: got b%d, want b%d", p.real.key, got, want)
	}
	return fmt.Sprintf("probe %v: b%d", p.real.key, got)
}

func (d *driver) tick() string {
	next, ok := d.ps.Next()
	span := pick(d.rng, 0, time.Millisecond, 100*time.Millisecond, time.Second, 5*time.Second, time.Minute)
	if ok && d.rng.IntN(3) == 0 {
		span = max(0, next-d.now)
	}
	if d.rng.IntN(20) == 0 {
		span = time.Hour
	}
	d.now += span
	if d.rng.IntN(3) == 0 {
		return fmt.Sprint("pass ", span)
	}
	for _, p := range d.pools {
		if !p.real.retired && p.real.waiters.n > 0 && !p.real.inReserve() {
			defer func() {
				if p.real.waiters.n > 0 && p.real.inReserve() && len(d.ps.effects) > 0 {
					d.seen["reserve"]++
				}
			}()
		}
	}
	d.ps.Tick(d.now)
	d.twin.tick(d.now)
	return fmt.Sprint("tick ", span)
}

func (d *driver) limit() string {
	r := d.rng
	scope := pick(r, AllClients, DatabaseClients, UserClients, DatabaseBackends, DatabaseBackends, UserBackends)
	name := ""
	switch scope {
	case DatabaseClients, DatabaseBackends:
		name = pick(r, "a", "b", "c")
	case UserClients, UserBackends:
		name = pick(r, "u", "v", "w")
	}
	n := pick(r, 0, 1, 2, 3, 6)
	if d.tight {
		n = pick(r, 1, 2)
	}
	if scope <= UserClients {
		n = pick(r, 0, 0, 4, 20)
	}
	return d.setLimit(scope, name, n)
}

func (d *driver) setLimit(scope Scope, name string, n int) string {
	d.ps.SetLimit(d.now, scope, name, n)
	d.twin.setLimit(d.now, scope, name, n)
	return fmt.Sprintf("limit %d %s %d", scope, name, n)
}

// compare carries out the effects of one call and compares everything.
func (d *driver) compare(what string) error {
	d.log = append(d.log, fmt.Sprintf("%v %s", d.now, what))
	if d.wrong != nil {
		return d.wrong
	}
	d.backends = slices.DeleteFunc(d.backends, func(b *Backend) bool { return b.links[poolLink].owner == nil })
	var got []string
	for _, e := range d.ps.Effects() {
		if e.Kind == Open {
			d.opened++
			e.Backend.Ref = d.opened
			d.backends = append(d.backends, e.Backend)
		}
		text := e.Kind.String()
		if e.Client != nil {
			text += fmt.Sprint(" c", e.Client.Ref)
		}
		if e.Backend != nil {
			text += fmt.Sprint(" b", e.Backend.Ref)
		}
		if e.Kind == Open {
			text += " for " + e.Backend.pool.key.Database + "/" + e.Backend.pool.key.User
		}
		if e.Reason != NoReason {
			text += ": " + e.Reason.String()
		}
		got = append(got, text)
		d.seen[e.Kind.String()]++
		d.seen[e.Reason.String()]++
		if err := d.promises(e); err != nil {
			return fmt.Errorf("%s: %s: %w", what, text, err)
		}
	}
	want := d.twin.drain()
	d.log = append(d.log, "    "+strings.Join(got, "; "))
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s: got %q, want %q", what, got, want)
	}
	if err := d.ps.check(d.now); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	d.pools = slices.DeleteFunc(d.pools, func(p *driverPool) bool { return p.real.gone() })
	if len(d.pools) != len(d.twin.pools) || len(d.pools) != len(d.ps.All()) || len(d.backends) != len(d.twin.backends) {
		return fmt.Errorf("%s: %d pools, %d of %d backends", what, len(d.pools), len(d.backends), len(d.twin.backends))
	}
	for _, p := range d.pools {
		if got, want := p.real.Stats(), d.twin.stats(p.twin); got != want {
			return fmt.Errorf("%s: pool %v: got %+v, want %+v", what, p.real.key, got, want)
		}
	}
	for _, server := range []string{"h", "i"} {
		l := twinLimit{serverCapacity, server}
		open, opening, closing, capacity := d.ps.ServerStats(server)
		n, bounded := d.twin.max[l]
		if !bounded {
			n = -1
		}
		if open != d.twin.count(under(l)) || opening != d.twin.count(under(l), in(Opening)) || closing != d.twin.count(under(l), in(Closing)) || capacity != n {
			return fmt.Errorf("%s: server %s: %d open, %d opening, %d closing of %d", what, server, open, opening, closing, capacity)
		}
	}
	return nil
}

// promises checks one effect against the driver's own books.
func (d *driver) promises(e Effect) error {
	switch e.Kind {
	case Link, Fail:
		p := d.poolOf(e.Client.pool)
		if len(p.queue) == 0 || p.queue[0] != e.Client {
			return fmt.Errorf("it overtook c%v", p.queue[0].Ref)
		}
		p.queue = p.queue[1:]
	case Open:
		p := e.Backend.pool
		if size := p.settings.Size; size > 0 && p.held > size+p.settings.ReserveSize {
			return fmt.Errorf("the pool holds %d of %d", p.held, size)
		}
		for _, l := range e.Backend.limits {
			open := 0
			for _, b := range d.backends {
				if b.limits[l.kind] == l {
					open++
				}
			}
			if l.max >= 0 && open > l.max {
				return fmt.Errorf("%d are open under the limit %q of %d", open, l.name, l.max)
			}
		}
	case Close:
		if p := e.Backend.pool; e.Reason == Evicted && p.waiters.n > 0 {
			d.seen["turn"]++
		}
	}
	return nil
}
