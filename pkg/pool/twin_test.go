package pool

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// twin is the pool again, slow and obviously right: it keeps plain lists, counts by looking at all of them, and after
// every call asks of every pool whether something should be done. It names clients and backends by number.
type twin struct {
	seed       uint64
	ticked     Time
	made       int
	pools      []*twinPool    // in order of making
	backends   []*twinBackend // that hold a slot, in order of opening
	max        map[twinLimit]int
	maxClients map[twinLimit]int
	deadlines  map[string]Time
	claims     map[twinLimit]int
	pauses     map[any]*twinPause // by *twinPool or twinLimit
	opened     int
	idles      int
	kept       int // backends closed for a pool that lacks more
	effects    []string
}

type twinLimit struct {
	kind limitKind
	name string
}

var everybody = twinLimit{kind: 3}

type twinPool struct {
	key        Key
	age        int
	set        Settings
	retired    bool
	clients    int
	queue      []twinWaiter
	generation int
	obsolete   Reason
	failures   int
	retryAt    Time
	nextExpiry Time
	attempts   int
	claims     int
	total      Stats // of which only the totals are used
}

type twinWaiter struct {
	client int
	since  Time
}

type twinBackend struct {
	id, seq         int
	pool            *twinPool
	limits          [3]twinLimit
	state           State
	client          int // 0: none
	generation      int
	started, opened Time
	idleSince       Time
	idleOrder       int
	linkedAt        Time
	served          bool
	dismissed       Reason
}

// twinPause is the back-pressure on a pool, a database or a server.
type twinPause struct {
	steps int
	until Time
}

func newTwin(seed uint64) *twin {
	return &twin{seed: seed, max: map[twinLimit]int{}, maxClients: map[twinLimit]int{}, deadlines: map[string]Time{}, pauses: map[any]*twinPause{}}
}

func (t *twin) say(format string, args ...any) {
	t.effects = append(t.effects, fmt.Sprintf(format, args...))
}

func (t *twin) drain() []string {
	out := t.effects
	t.effects = nil
	return out
}

// count counts the backends that hold a slot for which all conditions are true.
func (t *twin) count(conditions ...func(*twinBackend) bool) int {
	n := 0
	for _, b := range t.backends {
		all := true
		for _, is := range conditions {
			all = all && is(b)
		}
		if all {
			n++
		}
	}
	return n
}

func of(p *twinPool) func(*twinBackend) bool {
	return func(b *twinBackend) bool { return b.pool == p }
}

func under(l twinLimit) func(*twinBackend) bool {
	return func(b *twinBackend) bool { return b.limits[l.kind] == l }
}

func in(s State) func(*twinBackend) bool {
	return func(b *twinBackend) bool { return b.state == s }
}

func open(b *twinBackend) bool { return b.state != Closing }

func (t *twin) find(id int) *twinBackend {
	for _, b := range t.backends {
		if b.id == id {
			return b
		}
	}
	panic(fmt.Sprintf("twin: no backend %d", id))
}

func (p *twinPool) limits() [3]twinLimit {
	return [3]twinLimit{{serverCapacity, p.set.Server}, {databaseBackends, p.key.Database}, {userBackends, p.key.User}}
}

func (p *twinPool) compare(o *twinPool) int {
	return cmp.Or(cmp.Compare(p.key.Database, o.key.Database), cmp.Compare(p.key.User, o.key.User), cmp.Compare(p.age, o.age))
}

func (t *twin) sorted() []*twinPool {
	out := slices.Clone(t.pools)
	slices.SortFunc(out, (*twinPool).compare)
	return out
}

func (t *twin) stats(p *twinPool) Stats {
	s := p.total
	s.Clients, s.Waiting = p.clients, len(p.queue)
	s.Opening, s.Idle, s.Active = t.count(of(p), in(Opening)), t.count(of(p), in(Idle)), t.count(of(p), in(Active))
	s.Testing, s.Closing = t.count(of(p), in(Testing)), t.count(of(p), in(Closing))
	if len(p.queue) > 0 {
		s.OldestWait = p.queue[0].since
	}
	return s
}

// excess is what must go to respect a limit.
func (t *twin) excess(l twinLimit) int {
	n, ok := t.max[l]
	if !ok {
		return 0
	}
	return t.count(under(l), open) - n
}

func (t *twin) oversize(p *twinPool) int {
	if p.set.Size == 0 {
		return 0
	}
	return t.count(of(p), open) - p.set.Size - p.set.ReserveSize
}

// calls

func (t *twin) ensure(now Time, k Key, s Settings) *twinPool {
	for _, p := range t.pools {
		if p.key == k && !p.retired {
			return p
		}
	}
	t.made++
	p := &twinPool{key: k, age: t.made, set: s.normal()}
	t.pools = append(t.pools, p)
	t.finish(now)
	return p
}

func (t *twin) reconfigure(now Time, p *twinPool, s Settings) {
	moved := s.Server != p.set.Server
	p.set = s.normal()
	if moved {
		t.outdate(p, now, ConnectStringChanged)
	}
	for b := t.longestIdle(of(p)); b != nil && t.oversize(p) > 0; b = t.longestIdle(of(p)) {
		t.close(now, b, TooManyServers)
	}
	p.nextExpiry = min(p.nextExpiry, after(now, t.spacing(p)))
	t.finish(now)
}

func (t *twin) recycle(now Time, p *twinPool) {
	t.outdate(p, now, ConfigurationChanged)
	t.finish(now)
}

func (t *twin) outdate(p *twinPool, now Time, reason Reason) {
	p.generation++
	p.obsolete = reason
	t.closeIdle(now, p, reason)
}

func (t *twin) closeIdle(now Time, p *twinPool, reason Reason) {
	for b := t.longestIdle(of(p)); b != nil; b = t.longestIdle(of(p)) {
		t.close(now, b, reason)
	}
}

func (t *twin) retire(now Time, p *twinPool) {
	p.retired = true
	t.failAll(p, DatabaseRemoved)
	t.closeIdle(now, p, DatabaseRemoved)
	t.finish(now)
}

func (t *twin) setLimit(now Time, scope Scope, name string, n int) {
	switch scope {
	case AllClients:
		t.maxClients[everybody] = n
	case DatabaseClients:
		t.maxClients[twinLimit{databaseBackends, name}] = n
	case UserClients:
		t.maxClients[twinLimit{userBackends, name}] = n
	case DatabaseBackends:
		t.bound(now, twinLimit{databaseBackends, name}, cmp.Or(n, -1), TooManyServers)
	case UserBackends:
		t.bound(now, twinLimit{userBackends, name}, cmp.Or(n, -1), TooManyServers)
	}
	t.finish(now)
}

func (t *twin) setCapacity(now Time, server string, n int, deadline Time) {
	l := twinLimit{serverCapacity, server}
	t.bound(now, l, n, CapacityLowered)
	t.deadlines[server] = deadline
	t.enforce(now, server)
	t.finish(now)
}

func (t *twin) bound(now Time, l twinLimit, n int, reason Reason) {
	t.max[l] = n
	if n < 0 {
		delete(t.max, l)
	}
	for b := t.longestIdle(under(l)); b != nil && t.excess(l) > 0; b = t.longestIdle(under(l)) {
		t.close(now, b, reason)
	}
}

// enforce kills what is above a capacity at its deadline.
func (t *twin) enforce(now Time, server string) {
	l := twinLimit{serverCapacity, server}
	if deadline, ok := t.deadlines[server]; !ok || deadline > now {
		return
	}
	for t.excess(l) > 0 {
		var worst *twinBackend
		for _, b := range t.backends {
			if under(l)(b) && open(b) && (worst == nil || b.before(worst)) {
				worst = b
			}
		}
		client := ""
		if worst.client != 0 {
			client = fmt.Sprintf(" c%d", worst.client)
		}
		worst.client = 0
		worst.state = Closing
		t.say("kill%s b%d: capacity lowered", client, worst.id)
	}
}

// before says whether killing b does less harm than killing o.
func (b *twinBackend) before(o *twinBackend) bool {
	harm := func(b *twinBackend) int {
		switch {
		case b.state == Opening:
			return 0
		case b.state == Testing:
			return 1
		case b.pool.set.Mode == Session:
			return 3
		}
		return 2
	}
	return cmp.Or(cmp.Compare(harm(b), harm(o)), cmp.Compare(o.linkedAt, b.linkedAt), b.pool.compare(o.pool), cmp.Compare(o.seq, b.seq)) < 0
}

func (t *twin) connect(now Time, p *twinPool) error {
	inDatabase, inUser, all := 0, 0, 0
	for _, q := range t.pools {
		all += q.clients
		if q.key.Database == p.key.Database {
			inDatabase += q.clients
		}
		if q.key.User == p.key.User {
			inUser += q.clients
		}
	}
	reached := func(l twinLimit, n int) bool { return t.maxClients[l] > 0 && n >= t.maxClients[l] }
	switch {
	case reached(everybody, all):
		return &LimitError{Scope: AllClients}
	case reached(twinLimit{databaseBackends, p.key.Database}, inDatabase):
		return &LimitError{Scope: DatabaseClients}
	case reached(twinLimit{userBackends, p.key.User}, inUser):
		return &LimitError{Scope: UserClients}
	}
	p.clients++
	t.finish(now)
	return nil
}

func (t *twin) disconnect(now Time, p *twinPool, client int) {
	p.queue = slices.DeleteFunc(p.queue, func(w twinWaiter) bool { return w.client == client })
	p.clients--
	t.finish(now)
}

func (t *twin) acquire(now Time, p *twinPool, client int) {
	if p.retired {
		t.say("fail c%d: database removed", client)
		return
	}
	p.queue = append(p.queue, twinWaiter{client, now})
	t.finish(now)
}

// probe returns the number of the attempt, or 0.
func (t *twin) probe(now Time, p *twinPool, spare int) int {
	if p.retired || t.heldBack(p) || p.set.Size > 0 && t.count(of(p))+spare >= p.set.Size {
		return 0
	}
	for _, l := range p.limits() {
		if _, bounded := t.max[l]; bounded && t.free(l) <= spare {
			return 0
		}
	}
	id := t.begin(now, p)
	t.finish(now)
	return id
}

func (t *twin) openedCall(now Time, id int) {
	b := t.find(id)
	if b.state == Closing {
		return // the driver compares what is said here by hand
	}
	p := b.pool
	p.total.Opened++
	p.failures, p.retryAt = 0, 0
	for _, on := range []any{p, b.limits[serverCapacity], b.limits[databaseBackends]} {
		if pause := t.pauses[on]; pause != nil {
			pause.steps /= 2
			pause.until = 0
		}
	}
	b.opened = now
	if reason := t.unwanted(now, b); reason != NoReason {
		t.close(now, b, reason)
	} else {
		t.settle(now, b)
	}
	t.finish(now)
}

func (t *twin) openFailed(now Time, id int, permanent bool) {
	b := t.find(id)
	p := b.pool
	t.drop(b)
	p.total.OpenFailures++
	if p.retryAt <= now {
		delay := firstRetry
		for range p.failures {
			delay = min(2*delay, p.set.LoginRetry)
		}
		p.failures++
		p.retryAt = now + spread(min(delay, p.set.LoginRetry), poolSeed(t.seed, p.key), uint64(2*p.total.OpenFailures+1))
	}
	if permanent && t.count(of(p), open) == t.count(of(p), in(Opening)) {
		t.failAll(p, LoginFailed)
	}
	t.finish(now)
}

// pressed: all that the server's word concerns pauses for a random time, and after that makes one attempt at a time.
func (t *twin) pressed(now Time, id int, by Pressure) {
	b := t.find(id)
	p := b.pool
	t.drop(b)
	p.total.OpenFailures++
	var on any = p
	switch by {
	case OnDatabase:
		on = b.limits[databaseBackends]
	case OnServer:
		on = b.limits[serverCapacity]
	}
	if l, ok := on.(twinLimit); !ok || t.known(l) {
		pause := t.pauses[on]
		if pause == nil {
			pause = &twinPause{}
			t.pauses[on] = pause
		}
		if pause.until <= now {
			longest := firstPressure
			for range pause.steps {
				longest = min(2*longest, p.set.LoginRetry)
			}
			longest = min(longest, p.set.LoginRetry)
			pause.steps++
			pause.until = now + 1 + time.Duration(splitmix64(poolSeed(t.seed, p.key)+uint64(2*p.total.OpenFailures+1))%uint64(longest))
		}
	}
	t.finish(now)
}

// known says whether anything refers to a limit; its pause is forgotten with it.
func (t *twin) known(l twinLimit) bool {
	_, bounded := t.max[l]
	pools := slices.ContainsFunc(t.pools, func(p *twinPool) bool { return p.limits()[l.kind] == l })
	return bounded || pools || t.count(under(l)) > 0 || t.maxClients[l] > 0
}

func (t *twin) heldBack(p *twinPool) bool {
	waits := func(on any, opening int) bool {
		pause := t.pauses[on]
		return pause != nil && pause.steps > 0 && (pause.until > t.ticked || opening > 0)
	}
	limits := p.limits()
	for _, l := range limits[:2] {
		if waits(l, t.count(under(l), in(Opening))) {
			return true
		}
	}
	return waits(p, t.count(of(p), in(Opening)))
}

func (t *twin) dismiss(now Time, id int, reason Reason) {
	b := t.find(id)
	if b.dismissed == NoReason {
		b.dismissed = reason
	}
	if b.state == Idle {
		t.close(now, b, reason)
	}
	t.finish(now)
}

func (t *twin) release(now Time, id int, reset bool) {
	b := t.find(id)
	p := b.pool
	b.client = 0
	b.state = Testing
	if reason := t.unwanted(now, b); reason != NoReason {
		t.close(now, b, reason)
	} else if t.plan(now, b); b.state != Closing {
		if reset && p.set.Reset {
			t.say("reset b%d", b.id)
		} else {
			t.settle(now, b)
		}
	}
	t.finish(now)
}

func (t *twin) unlink(now Time, id int) {
	b := t.find(id)
	b.client = 0
	b.state = Testing
	t.finish(now)
}

func (t *twin) discard(now Time, id int) {
	b := t.find(id)
	b.client = 0
	b.state = Closing
	t.finish(now)
}

func (t *twin) closed(now Time, id int) {
	t.drop(t.find(id))
	t.finish(now)
}

func (t *twin) tick(now Time) {
	t.ticked = now
	var servers []string
	for name := range t.deadlines {
		servers = append(servers, name)
	}
	slices.Sort(servers)
	for _, name := range servers {
		t.enforce(now, name)
	}
	for _, p := range t.sorted() {
		for len(p.queue) > 0 && p.set.QueryWaitTimeout > 0 && p.queue[0].since+p.set.QueryWaitTimeout <= now {
			t.say("fail c%d: query_wait_timeout", p.queue[0].client)
			p.queue = p.queue[1:]
		}
		for p.set.ServerIdleTimeout > 0 && t.count(of(p), open) > t.minimum(p) {
			b := t.longestIdle(of(p))
			if b == nil || b.idleSince+p.set.ServerIdleTimeout > now {
				break
			}
			t.close(now, b, ServerIdleTimeout)
		}
		for {
			var first *twinBackend
			for _, b := range t.backends {
				if b.pool == p && b.state == Idle && t.tooOld(now, b) && (first == nil || t.end(b) < t.end(first)) {
					first = b
				}
			}
			if first == nil {
				break
			}
			t.close(now, first, ServerLifetimeOver)
		}
		t.serve(now, p)
	}
	t.finish(now)
}

// rules

func (t *twin) failAll(p *twinPool, reason Reason) {
	for _, w := range p.queue {
		t.say("fail c%d: %v", w.client, reason)
	}
	p.queue = nil
}

func (t *twin) close(now Time, b *twinBackend, reason Reason) {
	b.state = Closing
	if reason == Evicted {
		b.pool.total.Evictions++
	}
	if reason == ServerLifetimeOver {
		b.pool.nextExpiry = now + t.spacing(b.pool)
	}
	t.say("close b%d: %v", b.id, reason)
}

func (t *twin) drop(b *twinBackend) {
	t.backends = slices.DeleteFunc(t.backends, func(o *twinBackend) bool { return o == b })
}

func (t *twin) longestIdle(which func(*twinBackend) bool) *twinBackend {
	var found *twinBackend
	for _, b := range t.backends {
		if b.state == Idle && which(b) && (found == nil || b.colder(found)) {
			found = b
		}
	}
	return found
}

func (b *twinBackend) colder(o *twinBackend) bool {
	return b.idleOrder < o.idleOrder
}

func (t *twin) spacing(p *twinPool) time.Duration {
	n := p.set.Size
	if n == 0 {
		n = max(1, t.count(of(p), open))
	}
	return p.set.ServerLifetime / time.Duration(n)
}

func (t *twin) end(b *twinBackend) Time {
	life := b.pool.set.ServerLifetime
	return b.opened + spread(life, poolSeed(t.seed, b.pool.key), uint64(2*b.seq))
}

func (t *twin) tooOld(now Time, b *twinBackend) bool {
	if b.pool.set.ServerLifetime == 0 {
		return b.served
	}
	return t.end(b) <= now && b.pool.nextExpiry <= now
}

func (t *twin) unwanted(now Time, b *twinBackend) Reason {
	p := b.pool
	switch {
	case p.retired:
		return DatabaseRemoved
	case b.dismissed != NoReason:
		return b.dismissed
	case b.generation != p.generation:
		return p.obsolete
	case t.oversize(p) > 0:
		return TooManyServers
	}
	for _, l := range b.limits {
		others := 0
		if b.state == Opening && len(p.queue) > 0 {
			others = t.count(under(l), in(Opening)) - 1
		}
		if t.excess(l) > others {
			if l.kind == serverCapacity {
				return CapacityLowered
			}
			return TooManyServers
		}
	}
	if t.tooOld(now, b) {
		return ServerLifetimeOver
	}
	return NoReason
}

func (t *twin) settle(now Time, b *twinBackend) {
	if len(b.pool.queue) > 0 {
		t.link(now, b)
		return
	}
	t.idles++
	b.state, b.idleSince, b.idleOrder = Idle, now, t.idles
}

func (t *twin) link(now Time, b *twinBackend) {
	p := b.pool
	w := p.queue[0]
	p.queue = p.queue[1:]
	b.state, b.client, b.linkedAt, b.served = Active, w.client, now, true
	p.total.Assignments++
	p.total.WaitTime += now - w.since
	t.say("link c%d b%d", w.client, b.id)
}

func (t *twin) finish(now Time) {
	for _, p := range t.sorted() {
		t.serve(now, p)
	}
	t.plan(now, nil)
	t.pools = slices.DeleteFunc(t.pools, func(p *twinPool) bool {
		return p.retired && p.clients == 0 && t.count(of(p)) == 0
	})
	for on := range t.pauses {
		if l, ok := on.(twinLimit); ok && !t.known(l) {
			delete(t.pauses, on)
		}
	}
}

func (t *twin) serve(now Time, p *twinPool) {
	for len(p.queue) > 0 {
		var next *twinBackend
		for _, b := range t.backends {
			if b.pool == p && b.state == Idle && (next == nil || p.set.RoundRobin == (b.idleOrder < next.idleOrder)) {
				next = b
			}
		}
		switch {
		case next == nil:
			return
		case !p.set.Check || now-next.idleSince < p.set.CheckDelay:
			t.link(now, next)
		case len(p.queue) > t.count(of(p), in(Testing)):
			next.state = Testing
			t.say("check b%d", next.id)
		default:
			return
		}
	}
}

func (t *twin) minimum(p *twinPool) int {
	if p.retired || p.clients == 0 && !p.set.KeepWarm {
		return 0
	}
	return p.set.MinSize
}

func (t *twin) wanted(p *twinPool) int {
	if len(p.queue) == 0 || p.retryAt > t.ticked {
		return 0
	}
	opening := t.count(of(p), in(Opening))
	n := min(len(p.queue)-opening-t.count(of(p), in(Testing)), p.set.MaxConnecting-opening)
	if p.set.Size > 0 {
		size := p.set.Size
		if p.queue[0].since+p.set.ReserveTimeout <= t.ticked {
			size += p.set.ReserveSize
		}
		n = min(n, size-t.count(of(p)))
	}
	return n
}

// plan shares slots by the rules in plan.go: with the waiters until there is nothing more to do, then with the minimums.
func (t *twin) plan(now Time, offered *twinBackend) {
	for done := -1; done != len(t.effects); {
		done = len(t.effects)
		t.share(now, offered)
	}
	for _, p := range t.sorted() {
		for {
			opening, size := t.count(of(p), in(Opening)), p.set.Size
			if t.heldBack(p) || t.count(of(p), open) >= t.minimum(p) || p.retryAt > t.ticked || opening >= p.set.MaxConnecting ||
				size > 0 && t.count(of(p)) >= size || !t.mayOpen(p) {
				break
			}
			t.open(now, p)
		}
	}
}

// free slots now, and those to be expected once what closes has closed, beyond those promised
func (t *twin) free(l twinLimit) int     { return t.max[l] - t.count(under(l)) }
func (t *twin) expected(l twinLimit) int { return t.max[l] - t.count(under(l), open) - t.claims[l] }

func (t *twin) without(p *twinPool) (lacking []twinLimit) {
	for _, l := range p.limits() {
		if _, bounded := t.max[l]; bounded && t.expected(l) <= 0 {
			lacking = append(lacking, l)
		}
	}
	return lacking
}

func (t *twin) mayOpen(p *twinPool) bool {
	for _, l := range p.limits() {
		if _, bounded := t.max[l]; bounded && t.free(l) <= 0 {
			return false
		}
	}
	return len(t.without(p)) == 0
}

func (t *twin) share(now Time, offered *twinBackend) {
	t.claims = map[twinLimit]int{}
	var order []*twinPool
	for _, p := range t.pools {
		p.claims = 0
		if t.wanted(p) > 0 {
			order = append(order, p)
		}
	}
	slices.SortFunc(order, func(a, b *twinPool) int {
		return cmp.Or(cmp.Compare(a.queue[0].since, b.queue[0].since), a.compare(b))
	})
	claim := func(p *twinPool, limits []twinLimit) {
		for _, l := range limits {
			t.claims[l]++
		}
	}
	var kept *twinPool
	for again := true; again; {
		again = false
		for _, p := range order {
			if p.claims >= t.wanted(p) || p == kept || t.heldBack(p) {
				continue
			}
			if t.mayOpen(p) {
				t.open(now, p)
				again = true
				continue
			}
			victims, ok := t.victims(now, p, t.without(p), offered)
			if ok {
				for _, b := range victims {
					t.close(now, b, Evicted)
				}
				limits := p.limits()
				claim(p, limits[:])
				p.claims++
				again = true
			} else if kept == nil && p.claims == 0 && t.count(of(p), open) == 0 && t.ticked-p.queue[0].since >= fairness {
				// the oldest one that has nothing keeps what there is
				kept = p
				if offered != nil && t.evictable(now, offered, p, offered) && len(helps(offered, t.without(p))) > 0 {
					t.close(now, offered, Evicted)
					t.kept++
				}
				for _, l := range p.limits() {
					if !slices.Contains(t.without(p), l) {
						claim(p, []twinLimit{l})
					}
				}
			}
		}
	}
}

func (t *twin) open(now Time, p *twinPool) {
	t.say("open b%d for %s/%s", t.begin(now, p), p.key.Database, p.key.User)
}

func (t *twin) begin(now Time, p *twinPool) int {
	t.opened++
	p.attempts++
	t.backends = append(t.backends, &twinBackend{
		id: t.opened, seq: p.attempts, pool: p, limits: p.limits(), generation: p.generation, started: now,
	})
	return t.opened
}

func (t *twin) evictable(now Time, b *twinBackend, p *twinPool, offered *twinBackend) bool {
	q := b.pool
	if q == p {
		return false
	}
	if b.state == Idle {
		return true
	}
	if b != offered || b.state != Testing {
		return false
	}
	if len(q.queue) == 0 {
		return true
	}
	if !b.served || now-b.opened < min(amortize*(b.opened-b.started), maxAmortize) {
		return false
	}
	longer := q.queue[0].since - p.queue[0].since
	return longer > fairness || longer > 0 && t.count(of(p), open) == 0
}

func helps(b *twinBackend, lacking []twinLimit) (out []twinLimit) {
	for _, l := range lacking {
		if under(l)(b) {
			out = append(out, l)
		}
	}
	return out
}

// victims takes what helps most, then what is idle longest, until nothing lacks, and makes sure that no smaller set
// would have done.
func (t *twin) victims(now Time, p *twinPool, lacking []twinLimit, offered *twinBackend) ([]*twinBackend, bool) {
	all := lacking
	var out []*twinBackend
	for len(lacking) > 0 {
		var best *twinBackend
		for _, b := range t.backends {
			if slices.Contains(out, b) || !t.evictable(now, b, p, offered) || len(helps(b, lacking)) == 0 {
				continue
			}
			switch {
			case best == nil || len(helps(b, lacking)) > len(helps(best, lacking)):
				best = b
			case len(helps(b, lacking)) < len(helps(best, lacking)) || b == offered:
			case best == offered || b.colder(best):
				best = b
			}
		}
		if best == nil {
			return nil, false
		}
		out = append(out, best)
		lacking = slices.DeleteFunc(slices.Clone(lacking), func(l twinLimit) bool { return under(l)(best) })
	}
	if len(out) > 1 {
		for _, b := range t.backends {
			if t.evictable(now, b, p, offered) && len(helps(b, all)) == len(all) {
				panic("twin: one victim would have done")
			}
		}
	}
	if len(out) > 2 {
		for _, a := range t.backends {
			for _, b := range t.backends {
				if t.evictable(now, a, p, offered) && t.evictable(now, b, p, offered) && len(helps(a, all))+len(helps(b, all)) >= 3 &&
					len(slices.Compact(slices.SortedFunc(slices.Values(append(helps(a, all), helps(b, all)...)), func(x, y twinLimit) int {
						return cmp.Compare(x.kind, y.kind)
					}))) == len(all) {
					panic("twin: two victims would have done")
				}
			}
		}
	}
	return out, true
}
