package pool

import (
	"cmp"
	"slices"
	"time"
)

// Time is an instant: what passed since an arbitrary zero, read from a monotonic clock by the caller.
type Time = time.Duration

// Never is later than every other Time.
const Never Time = 1<<63 - 1

// Key names a pool.
type Key struct{ Database, User string }

func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Database, o.Database), cmp.Compare(k.User, o.User))
}

// Mode says when a client gives its backend back. The caller decides that moment; the pool only closes session-mode
// backends last when it must close busy ones.
type Mode uint8

const (
	Session Mode = iota
	Transaction
	Statement
)

var modeNames = [...]string{"session", "transaction", "statement"}

func (m Mode) String() string { return modeNames[m] }

// Settings of one pool, resolved by the caller. The zero value is usable: an unlimited session pool on the server "".
type Settings struct {
	Server            string // database server whose capacity this pool shares
	Mode              Mode
	Size              int           // backends; 0 = unlimited
	MinSize           int           // backends kept while the pool has clients
	ReserveSize       int           // further backends once the oldest waiter waited ReserveTimeout
	ReserveTimeout    time.Duration // 0 = the reserve is not used
	QueryWaitTimeout  time.Duration // 0 = never
	ServerLifetime    time.Duration // 0 = a backend serves once
	ServerIdleTimeout time.Duration // 0 = never
	CheckDelay        time.Duration // idle for this long: checked before use, if Check
	Check             bool          // a check query exists
	Reset             bool          // a reset query is due after each release
	RoundRobin        bool          // lend the longest idle backend instead of the latest
	KeepWarm          bool          // keep MinSize backends also without clients
	MaxConnecting     int           // attempts under way at once; below 1 counts as 1
	LoginRetry        time.Duration // ceiling of the back-off after failed attempts
}

// firstRetry is the back-off after the first failed attempt, and its floor.
const firstRetry = 100 * time.Millisecond

// normal returns s without values that have no meaning.
func (s Settings) normal() Settings {
	s.Size, s.MinSize, s.ReserveSize = max(s.Size, 0), max(s.MinSize, 0), max(s.ReserveSize, 0)
	s.MaxConnecting = max(s.MaxConnecting, 1)
	s.LoginRetry = max(s.LoginRetry, firstRetry)
	if s.Size > 0 {
		s.MinSize = min(s.MinSize, s.Size)
	}
	if s.Size == 0 || s.ReserveTimeout <= 0 {
		s.ReserveSize = 0
	}
	return s
}

// Pools owns every pool of a process (or of one event loop of it). It is not safe for concurrent use.
type Pools struct {
	seed    uint64
	ticked  Time // of the latest Tick; time-dependent permissions to open are granted by Tick alone
	created int  // pools ever made
	idled   int  // times a backend became idle

	byKey  map[Key]*Pool // live pools; looked up, never walked
	sorted []*Pool       // live and retired ones, by key, then age
	shared [3]map[string]*limit

	clients, maxClients int // maxClients 0: no limit

	effects, drained []Effect
	timers           timerHeap
	due              []*timer

	hungry []*Pool // pools with wanted() > 0, in no order
	short  []*Pool // pools with shortfall() > 0, in no order
	order  []*Pool // scratch of plan
	chosen []*Backend
}

// New returns an empty set of pools. The seed decides all jitter.
func New(seed uint64) *Pools {
	ps := &Pools{seed: seed, byKey: map[Key]*Pool{}}
	for i := range ps.shared {
		ps.shared[i] = map[string]*limit{}
	}
	return ps
}

// Pool is the clients and backends of one (database, user).
type Pool struct {
	ps       *Pools
	key      Key
	age      int // order of creation; tells a retired pool from its successor
	seed     uint64
	settings Settings
	retired  bool

	limits [3]*limit // what new backends count in, by limitKind

	// counts and held cover every backend from Open until Closed or OpenFailed; held is the sum of counts.
	counts [states]int
	held   int
	all    backendList // in order of opening
	idle   idleList    // all backends in state Idle, longest idle first

	clients int        // connected, waiting and linked ones included
	waiters clientList // oldest first; with an idle backend only while checks cover every waiter

	generation int // backends of an older one close as soon as nobody uses them
	obsolete   Reason
	failures   int  // attempts failed in a row, counting those of one round once
	retryAt    Time // no attempt starts before a Tick at or after it
	pressure   throttle
	nextExpiry Time // no lifetime closing before it

	hungryAt, shortAt int // index in the lists of Pools plus 1; 0 = not in it
	claims            int // by the latest plan: slots promised, from closings under way
	timer             timer
	served            counters
}

// Ensure returns the pool of key, made with s if there is none.
func (ps *Pools) Ensure(now Time, key Key, s Settings) *Pool {
	if p := ps.byKey[key]; p != nil {
		return p
	}
	ps.created++
	p := &Pool{ps: ps, key: key, age: ps.created, seed: poolSeed(ps.seed, key), settings: s.normal()}
	p.timer.init(p, nil)
	for kind := range p.limits {
		p.limits[kind] = ps.limit(limitKind(kind), p.limitName(limitKind(kind)))
		p.limits[kind].pools++
	}
	at, _ := slices.BinarySearchFunc(ps.sorted, p, comparePools)
	ps.sorted = slices.Insert(ps.sorted, at, p)
	ps.byKey[key] = p
	ps.changed(now, p)
	ps.plan(now, nil)
	return p
}

func comparePools(a, b *Pool) int {
	return cmp.Or(a.key.compare(b.key), cmp.Compare(a.age, b.age))
}

// Lookup returns the pool of key, or nil. Retired pools are not found.
func (ps *Pools) Lookup(key Key) *Pool { return ps.byKey[key] }

// All returns the pools sorted by key, retired ones that are not empty yet included.
func (ps *Pools) All() []*Pool { return slices.Clone(ps.sorted) }

// Key returns the pool's name.
func (p *Pool) Key() Key { return p.key }

// Settings returns the settings in force.
func (p *Pool) Settings() Settings { return p.settings }

// Retired says whether the pool's database was removed.
func (p *Pool) Retired() bool { return p.retired }

// Reconfigure gives p new settings. Sizes and timeouts apply at once; another server also recycles the backends.
func (ps *Pools) Reconfigure(now Time, p *Pool, s Settings) {
	s = s.normal()
	moved := s.Server != p.settings.Server
	p.settings = s
	if moved && !p.gone() {
		p.setHungry(false) // counted per limit; refresh counts it again
		old := p.limits[serverCapacity]
		old.pools--
		p.limits[serverCapacity] = ps.limit(serverCapacity, s.Server)
		p.limits[serverCapacity].pools++
		ps.forget(old)
		p.refresh()
		ps.recycle(now, p, ConnectStringChanged)
	}
	for p.oversize() > 0 && p.idle.oldest != nil {
		ps.close(now, p.idle.oldest, TooManyServers)
	}
	p.nextExpiry = min(p.nextExpiry, after(now, p.expirySpacing()))
	ps.changed(now, p)
	ps.plan(now, nil)
}

// Recycle closes every present backend of p as soon as nobody uses it: what they connected with is out of date.
func (ps *Pools) Recycle(now Time, p *Pool) {
	ps.recycle(now, p, ConfigurationChanged)
	ps.changed(now, p)
	ps.plan(now, nil)
}

func (ps *Pools) recycle(now Time, p *Pool, reason Reason) {
	p.generation++
	p.obsolete = reason
	for p.idle.oldest != nil {
		ps.close(now, p.idle.oldest, reason)
	}
}

// Retire says that p's database was removed. Waiters fail, idle backends close, busy ones close when released. The
// pool vanishes when it has neither clients nor backends; a new one of the same key may live beside it until then.
func (ps *Pools) Retire(now Time, p *Pool) {
	if p.retired {
		return
	}
	p.retired = true
	delete(ps.byKey, p.key)
	ps.failAll(p, DatabaseRemoved)
	for p.idle.oldest != nil {
		ps.close(now, p.idle.oldest, DatabaseRemoved)
	}
	ps.changed(now, p)
	ps.vanish(p)
	ps.plan(now, nil)
}

// vanish forgets a retired pool that is empty.
func (ps *Pools) vanish(p *Pool) {
	if !p.retired || p.gone() || p.held > 0 || p.clients > 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(ps.sorted, p, comparePools)
	ps.sorted = slices.Delete(ps.sorted, at, at+1)
	ps.timers.set(&p.timer, Never)
	for kind, l := range p.limits {
		l.pools--
		ps.forget(l)
		p.limits[kind] = nil
	}
}

func (p *Pool) gone() bool { return p.limits[serverCapacity] == nil }
