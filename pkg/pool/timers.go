package pool

import (
	"cmp"
	"slices"
	"time"
)

// Tick does what time alone causes: waiters time out, backends reach their idle timeout or lifetime, capacity deadlines
// pass, the reserve and attempts after a back-off are allowed. It costs nothing for pools where nothing is due.
func (ps *Pools) Tick(now Time) {
	ps.ticked = max(ps.ticked, now)
	due := ps.due[:0]
	for len(ps.timers) > 0 && ps.timers[0].at <= now {
		due = append(due, ps.timers[0])
		ps.timers.set(ps.timers[0], Never)
	}
	if len(due) == 0 {
		return
	}
	slices.SortFunc(due, compareTimers)
	for _, t := range due {
		if t.limit != nil {
			if t.limit.deadline <= now {
				ps.enforce(t.limit)
			}
			ps.armLimit(t.limit)
		} else {
			ps.expire(now, t.pool)
		}
	}
	ps.plan(now, nil)
	clear(due)
	ps.due = due[:0]
}

// Next returns the time by which Tick must be called; false means that nothing is pending. It is never late; it may be
// early, where what it was for has been dealt with meanwhile, and Tick then moves it on.
func (ps *Pools) Next() (Time, bool) {
	if len(ps.timers) == 0 {
		return 0, false
	}
	return ps.timers[0].at, true
}

// expire does what is due in p.
func (ps *Pools) expire(now Time, p *Pool) {
	s := &p.settings
	if s.QueryWaitTimeout > 0 {
		for c := p.waiters.head; c != nil && after(c.since, s.QueryWaitTimeout) <= now; c = p.waiters.head {
			ps.fail(p, c, QueryWaitTimeout)
		}
	}
	if s.ServerIdleTimeout > 0 {
		for b := p.idle.oldest; b != nil && after(b.idleSince, s.ServerIdleTimeout) <= now && p.usable() > p.minimum(); b = p.idle.oldest {
			ps.close(now, b, ServerIdleTimeout)
		}
	}
	for {
		b, at := p.firstExpiry()
		if at > now {
			break
		}
		ps.close(now, b, ServerLifetimeOver)
	}
	ps.changed(now, p)
}

// expiresAt is when b's lifetime is over: each has its own, within a fifth of the setting, so that backends opened
// together do not all end together.
func (b *Backend) expiresAt() Time {
	life := b.pool.settings.ServerLifetime
	if life <= 0 { // single use
		if b.served {
			return b.openedAt
		}
		return Never
	}
	return after(b.openedAt, spread(life, b.pool.seed, uint64(b.seq)<<1))
}

// expired says whether b is to be closed because of its age, now that nobody uses it.
func (b *Backend) expired(now Time) bool {
	return b.pool.nextExpiry <= now && b.expiresAt() <= now
}

// expirySpacing is how far apart lifetime closings of p are, so that a pool is renewed over a whole lifetime.
func (p *Pool) expirySpacing() time.Duration {
	size := p.settings.Size
	if size == 0 {
		size = max(p.usable(), 1)
	}
	return p.settings.ServerLifetime / time.Duration(size)
}

// firstExpiry returns the idle backend that reaches its lifetime first, and when it may be closed.
func (p *Pool) firstExpiry() (*Backend, Time) {
	var first *Backend
	at := Never
	for b := p.idle.oldest; b != nil; b = b.warmer {
		if t := b.expiresAt(); t < at || t == at && first != nil && b.seq < first.seq {
			first, at = b, t
		}
	}
	return first, max(at, p.nextExpiry)
}

// backOff delays p's next attempt after a failed one. Attempts of one round that fail together count once.
func (ps *Pools) backOff(now Time, p *Pool) {
	if p.retryAt > now {
		return
	}
	delay := p.settings.LoginRetry
	if p.failures < 20 { // beyond, the shift alone passes any ceiling
		delay = min(delay, firstRetry<<p.failures)
	}
	p.failures++
	p.retryAt = after(now, spread(delay, p.seed, uint64(p.served.failures)<<1|1))
}

// rearm sets p's timer to what is due first.
func (ps *Pools) rearm(p *Pool) {
	at := p.waitDue()
	if p.retryAt > ps.ticked && (p.waiters.n > 0 || p.usable() < p.minimum()) {
		at = min(at, p.retryAt)
	}
	if p.pressure.until > ps.ticked && (p.waiters.n > 0 || p.usable() < p.minimum()) {
		at = min(at, p.pressure.until)
	}
	if b := p.idle.oldest; b != nil {
		if p.settings.ServerIdleTimeout > 0 && p.usable() > p.minimum() {
			at = min(at, after(b.idleSince, p.settings.ServerIdleTimeout))
		}
		_, expiry := p.firstExpiry()
		at = min(at, expiry)
	}
	ps.timers.set(&p.timer, at)
}

// waitDue is when time does something about p's oldest waiter.
func (p *Pool) waitDue() Time {
	c := p.waiters.head
	if c == nil {
		return Never
	}
	at := Never
	if p.settings.QueryWaitTimeout > 0 {
		at = after(c.since, p.settings.QueryWaitTimeout)
	}
	if t := after(c.since, fairness); p.hungryAt != 0 && t > p.ps.ticked {
		at = min(at, t) // p may starve from then on
	}
	if p.settings.ReserveSize > 0 && !p.inReserve() {
		at = min(at, after(c.since, p.settings.ReserveTimeout))
	}
	return at
}

// armWait and armIdle move p's timer forward after p got another oldest waiter or an idle backend. They never move it
// back, which would need a look at everything: on the hot path a timer may stand too early, never too late.
func (ps *Pools) armWait(p *Pool) {
	at := p.waitDue()
	if p.retryAt > ps.ticked && p.waiters.n > 0 {
		at = min(at, p.retryAt)
	}
	if p.pressure.until > ps.ticked && p.waiters.n > 0 {
		at = min(at, p.pressure.until)
	}
	if at < p.timer.at {
		ps.timers.set(&p.timer, at)
	}
}

func (ps *Pools) armIdle(p *Pool, b *Backend) {
	at := max(b.expiresAt(), p.nextExpiry)
	if p.settings.ServerIdleTimeout > 0 {
		at = min(at, after(b.idleSince, p.settings.ServerIdleTimeout))
	}
	if at < p.timer.at {
		ps.timers.set(&p.timer, at)
	}
}

// after adds without passing Never.
func after(t Time, d time.Duration) Time {
	if d > Never-t {
		return Never
	}
	return t + d
}

// timer belongs to a pool or to the limit of a server.
type timer struct {
	at    Time
	index int // in the heap; -1 when at is Never
	pool  *Pool
	limit *limit
}

func (t *timer) init(p *Pool, l *limit) { *t = timer{at: Never, index: -1, pool: p, limit: l} }

// compareTimers orders what is due at once: capacities before pools, each by name.
func compareTimers(a, b *timer) int {
	switch {
	case a.limit != nil && b.limit != nil:
		return cmp.Compare(a.limit.name, b.limit.name)
	case a.limit != nil:
		return -1
	case b.limit != nil:
		return 1
	}
	return comparePools(a.pool, b.pool)
}

// timerHeap is a binary heap by time.
type timerHeap []*timer

// set moves t to another time; Never takes it out.
func (h *timerHeap) set(t *timer, at Time) {
	if t.at == at {
		return
	}
	t.at = at
	switch {
	case t.index < 0:
		t.index = len(*h)
		*h = append(*h, t)
	case at == Never:
		last := len(*h) - 1
		i := t.index
		h.swap(i, last)
		(*h)[last] = nil
		*h = (*h)[:last]
		t.index = -1
		if i < last {
			h.fix(i)
		}
		return
	}
	h.fix(t.index)
}

func (h *timerHeap) swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (h *timerHeap) fix(i int) {
	s := *h
	for i > 0 {
		parent := (i - 1) / 2
		if s[parent].at <= s[i].at {
			break
		}
		h.swap(i, parent)
		i = parent
	}
	for {
		child := 2*i + 1
		if child+1 < len(s) && s[child+1].at < s[child].at {
			child++
		}
		if child >= len(s) || s[i].at <= s[child].at {
			return
		}
		h.swap(i, child)
		i = child
	}
}
