package pool

import (
	"cmp"
	"slices"
	"time"
)

// How slots are shared.
//
// A pool is hungry while its own rules (size, attempts at once, back-off) let it open a backend for a waiter that no
// attempt and no test under way will serve. plan walks the hungry pools, the one with the oldest waiter first, one
// backend each per round. Each gets a slot that is free, or the promise of one that a closing under way will free, or has
// idle backends of others closed. Promises are not kept between calls: they are worked out anew each time from the
// same facts, so nothing can leak, and a closing is never counted for two pools.
//
// When everything under a limit is busy, pools must take turns, else a pool that holds nothing starves beside one that
// is never idle. So a released backend is closed for another pool whose oldest waiter is older than that of its own
// pool, if the other holds nothing, or if the difference is above fairness. That this ends, and pays:
//
//   - A backend goes only from a pool with the younger head to one with the older. Serving a waiter makes a pool's head
//     younger, so two pools cannot both be the older one, and the oldest waiter of all is never passed over.
//   - A backend serves at least once before it goes, so every login serves somebody: no livelock.
//   - A backend also stays until it has been of use for amortize times what its login took (at most a second). So
//     however hard the pools pull, logins take at most 1/(amortize+1) of a slot's time, and a pool that waits is
//     delayed by little more than the logins themselves cost.
//   - Each pool takes at most MaxConnecting at a time, and while closings that were promised to it are under way no
//     other backend is closed for the same waiter.
//
// One case remains: a pool under two limits that no single backend of others is under. Slots freed one by one would be
// taken by younger waiters in between. So the oldest waiter of the pools that hold nothing, once it waited for
// fairness, keeps what becomes free until it has everything it needs.
const (
	fairness    = time.Second
	amortize    = 4
	maxAmortize = time.Second
)

// wanted is how many backends p could open for its waiters if shared limits allowed.
func (p *Pool) wanted() int {
	if p.waiters.n == 0 || p.retired || p.retryAt > p.ps.ticked {
		return 0
	}
	n := p.waiters.n - p.counts[Opening] - p.counts[Testing]
	n = min(n, p.settings.MaxConnecting-p.counts[Opening])
	if size := p.settings.Size; size > 0 {
		if p.inReserve() {
			size += p.settings.ReserveSize
		}
		n = min(n, size-p.held)
	}
	return max(n, 0)
}

// inReserve says whether the oldest waiter waited long enough for the reserve.
func (p *Pool) inReserve() bool {
	return p.settings.ReserveSize > 0 && after(p.waiters.head.since, p.settings.ReserveTimeout) <= p.ps.ticked
}

// starves says whether p holds nothing and its oldest waiter waited for longer than what counts as even.
func (p *Pool) starves() bool {
	return p.usable() == 0 && after(p.waiters.head.since, fairness) <= p.ps.ticked
}

// shortfall is how many backends p could open to reach its minimum if shared limits allowed.
func (p *Pool) shortfall() int {
	n := p.minimum() - p.usable()
	if n <= 0 || p.retryAt > p.ps.ticked {
		return 0
	}
	n = min(n, p.settings.MaxConnecting-p.counts[Opening])
	if p.settings.Size > 0 {
		n = min(n, p.settings.Size-p.held)
	}
	return max(n, 0)
}

// minimum is how many backends p keeps.
func (p *Pool) minimum() int {
	if p.retired || p.clients == 0 && !p.settings.KeepWarm {
		return 0
	}
	return p.settings.MinSize
}

// usable counts the backends that are or will be of use.
func (p *Pool) usable() int { return p.held - p.counts[Closing] }

// refresh brings p's membership in the lists of hungry and short pools up to date.
func (p *Pool) refresh() {
	p.setHungry(p.wanted() > 0)
	p.setShort(p.shortfall() > 0)
}

func (p *Pool) setHungry(hungry bool) {
	if hungry == (p.hungryAt != 0) {
		return
	}
	n := -1
	if hungry {
		n = 1
	}
	for _, l := range p.limits {
		l.hungry += n
	}
	if hungry {
		p.ps.hungry = append(p.ps.hungry, p)
		p.hungryAt = len(p.ps.hungry)
		return
	}
	last := takeOut(&p.ps.hungry, p.hungryAt-1)
	last.hungryAt, p.hungryAt = p.hungryAt, 0
	p.claims = 0
}

func (p *Pool) setShort(short bool) {
	if short == (p.shortAt != 0) {
		return
	}
	if short {
		p.ps.short = append(p.ps.short, p)
		p.shortAt = len(p.ps.short)
		return
	}
	last := takeOut(&p.ps.short, p.shortAt-1)
	last.shortAt, p.shortAt = p.shortAt, 0
}

// takeOut removes one pool, and returns the last one, which takes its place.
func takeOut(list *[]*Pool, at int) *Pool {
	s := *list
	last := s[len(s)-1]
	s[at], s[len(s)-1] = last, nil
	*list = s[:len(s)-1]
	return last
}

// refreshQueued is refresh after a change that cannot matter while nobody waits.
func (p *Pool) refreshQueued() {
	if p.waiters.n > 0 || p.hungryAt != 0 {
		p.refresh()
	}
}

// hopeful is false when p, which is hungry, certainly gets nothing now: some limit is full of busy backends.
func (p *Pool) hopeful() bool {
	for _, l := range p.limits {
		if l.bounded() && l.room()+l.counts[Closing]+l.counts[Idle] <= 0 {
			return false
		}
	}
	return true
}

// contended says whether closing b, which is in state Testing, might serve another pool. It may err only on the side of
// yes: prospects are those of the latest plan, and what happened since without one did not make them worse.
func (p *Pool) contended(now Time, b *Backend) bool {
	var tight limitSet
	for kind, l := range b.limits {
		others := l.hungry
		if p.hungryAt != 0 && p.limits[kind] == l {
			others--
		}
		if others > 0 && l.bounded() && l.prospect() <= 0 {
			tight |= 1 << kind
		}
	}
	if tight == 0 || p.waiters.n > 0 && !b.paid(now) {
		return false
	}
	for _, q := range p.ps.hungry {
		if q.covers(b, tight) != 0 && b.evictable(now, q, b) && !q.heldBack() {
			return true
		}
	}
	return false
}

// plan opens what may be opened, and closes what must be closed for others to open. The backend offered, if any, is in
// state Testing and not needed by anybody yet: it may be closed too, and the result says whether it was.
func (ps *Pools) plan(now Time, offered *Backend) bool {
	if len(ps.hungry) == 0 && len(ps.short) == 0 {
		return false
	}
	for ps.share(now, offered) {
		// What was closed for one pool may complete what an older one was lacking.
	}
	ps.warm(now)
	return offered != nil && offered.state == Closing
}

// share walks the hungry pools as told above, and says whether it opened or closed anything.
func (ps *Pools) share(now Time, offered *Backend) bool {
	effects := len(ps.effects)
	order := append(ps.order[:0], ps.hungry...)
	slices.SortFunc(order, func(a, b *Pool) int {
		return cmp.Or(cmp.Compare(a.waiters.head.since, b.waiters.head.since), comparePools(a, b))
	})
	for _, list := range [...][]*Pool{order, ps.short} {
		for _, p := range list {
			p.claims = 0
			for _, l := range p.limits {
				l.claims = 0
			}
		}
	}
	var keeper *Pool // keeps slots it cannot use yet
	for progress := true; progress; {
		progress = false
		for _, p := range order {
			if p.wanted() <= p.claims || p == keeper || p.heldBack() {
				continue
			}
			if ps.place(now, p, offered) {
				progress = true
			} else if keeper == nil && p.claims == 0 && p.starves() {
				ps.keep(now, p, offered)
				keeper = p
			}
		}
	}
	clear(order)
	ps.order = order[:0]
	return len(ps.effects) > effects
}

// place finds a slot for p: free, about to be free, or made free.
func (ps *Pools) place(now Time, p *Pool, offered *Backend) bool {
	if p.mayOpen() {
		ps.open(now, p)
		return true
	}
	if lacking := p.lacking(); lacking != 0 {
		victims := ps.victims(now, p, lacking, offered)
		if victims == nil {
			return false
		}
		for _, b := range victims {
			ps.evict(now, b)
		}
	}
	p.claims++
	for _, l := range p.limits {
		l.claims++
	}
	return true
}

func (ps *Pools) evict(now Time, b *Backend) {
	ps.close(now, b, Evicted)
	b.pool.refresh()
	ps.rearm(b.pool)
}

// mayOpen says whether every shared limit has a free slot for p that is not promised.
func (p *Pool) mayOpen() bool {
	for _, l := range p.limits {
		if l.bounded() && (l.room() <= 0 || l.prospect() <= 0) {
			return false
		}
	}
	return true
}

// limitSet is a set of limit kinds.
type limitSet uint8

func (s limitSet) size() int { return int(s&1 + s>>1&1 + s>>2&1) }

// lacking returns the limits under which p has no slot in prospect.
func (p *Pool) lacking() limitSet {
	var s limitSet
	for kind, l := range p.limits {
		if l.bounded() && l.prospect() <= 0 {
			s |= 1 << kind
		}
	}
	return s
}

// covers returns those limits of p in s under which closing b makes room.
func (p *Pool) covers(b *Backend, s limitSet) limitSet {
	for kind, l := range p.limits {
		if b.limits[kind] != l {
			s &^= 1 << kind
		}
	}
	return s
}

// victims returns the fewest backends whose end gives p a slot under each lacking limit, the longest idle among equals,
// or nil. The greedy choice is the smallest one: there are at most three limits.
func (ps *Pools) victims(now Time, p *Pool, lacking limitSet, offered *Backend) []*Backend {
	out := ps.chosen[:0]
	for lacking != 0 {
		var best *Backend
		var bestCover limitSet
		for kind, l := range p.limits {
			if lacking>>kind&1 == 0 {
				continue
			}
			for b := l.all.head; b != nil; b = b.links[kind].next {
				if b.chosen || !b.evictable(now, p, offered) {
					continue
				}
				cover := p.covers(b, lacking)
				if more := cover.size() - bestCover.size(); best == nil || more > 0 || more == 0 && colder(b, best, offered) {
					best, bestCover = b, cover
				}
			}
		}
		if best == nil {
			break
		}
		best.chosen = true
		out = append(out, best)
		lacking &^= bestCover
	}
	for _, b := range out {
		b.chosen = false
	}
	ps.chosen = out[:0]
	if lacking != 0 {
		return nil
	}
	return out
}

// colder orders victims: the longest idle first, the offered one last.
func colder(a, b, offered *Backend) bool {
	if a == offered || b == offered {
		return b == offered && a != offered
	}
	return a.idleOrder < b.idleOrder
}

// evictable says whether b may be closed for p: nobody of its own pool needs it, or p is owed it.
func (b *Backend) evictable(now Time, p *Pool, offered *Backend) bool {
	q := b.pool
	switch {
	case q == p:
		return false
	case b.state == Idle:
		return true
	case b != offered || b.state != Testing:
		return false
	case q.waiters.n == 0:
		return true
	case !b.paid(now):
		return false
	}
	older := q.waiters.head.since - p.waiters.head.since
	return older > fairness || older > 0 && p.usable() == 0
}

// paid says whether b was of enough use for what its login cost.
func (b *Backend) paid(now Time) bool {
	return b.served && now-b.openedAt >= min(amortize*(b.openedAt-b.startedAt), maxAmortize)
}

// keep has p, which holds nothing, hold on to what is free under its limits, and to what the offered backend frees.
func (ps *Pools) keep(now Time, p *Pool, offered *Backend) {
	lacking := p.lacking()
	if offered != nil && offered.evictable(now, p, offered) && p.covers(offered, lacking) != 0 {
		ps.evict(now, offered)
		lacking = p.lacking()
	}
	for kind, l := range p.limits {
		if lacking>>kind&1 == 0 {
			l.claims++
		}
	}
}

// warm opens backends for pools below their minimum. It takes only slots that are free and that no waiter is promised.
func (ps *Pools) warm(now Time) {
	if len(ps.short) == 0 {
		return
	}
	order := append(ps.order[:0], ps.short...)
	slices.SortFunc(order, comparePools)
	for _, p := range order {
		for p.shortfall() > 0 && !p.heldBack() && p.mayOpen() {
			ps.open(now, p)
		}
	}
	clear(order)
	ps.order = order[:0]
}
