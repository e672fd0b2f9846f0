package pool

// State of a backend. It counts in every limit in each of them.
type State uint8

const (
	Opening State = iota // an attempt is under way
	Idle                 // logged in, nobody uses it
	Active               // linked to a client
	Testing              // a check, a reset or a clean-up is under way, nobody is linked
	Closing              // over, but the server's slot is not proved free

	states = int(Closing) + 1
)

var stateNames = [...]string{"opening", "idle", "active", "testing", "closing"}

func (s State) String() string { return stateNames[s] }

// Backend is one server connection, from the attempt to the proof of its end. Effects of kind Open hand out new ones.
type Backend struct {
	Ref  any // the caller's
	Like any // compared with a client's; the caller's to set

	pool   *Pool
	client *Client // set exactly while Active
	state  State
	seq    int       // order of opening within the pool
	limits [3]*limit // it counts in; the pool's at the time of opening

	links               [4]backendLink // in the lists of its three limits and its pool
	colder, warmer      *Backend       // in the pool's idle list
	generation          int
	startedAt, openedAt Time
	idleSince, linkedAt Time
	idleOrder           int    // of becoming idle, among all
	served              bool   // linked at least once
	chosen              bool   // scratch of victims
	reason              Reason // of Closing
	dismissed           Reason // why it must serve nobody else
}

// Pool returns the pool the backend belongs to.
func (b *Backend) Pool() *Pool { return b.pool }

// Client returns the client the backend is linked to, or nil.
func (b *Backend) Client() *Client { return b.client }

// State returns the backend's state.
func (b *Backend) State() State { return b.state }

func (b *Backend) must(call string, s State) {
	if b.state != s {
		panic("pool: " + call + " of a backend that is " + b.state.String() + ", not " + s.String())
	}
}

// become changes the state, every count of it, and the list of idle backends.
func (b *Backend) become(s State) {
	if b.state == Idle {
		b.pool.idle.remove(b)
	} else if s == Idle {
		b.pool.idle.push(b)
	}
	b.pool.counts[b.state]--
	b.pool.counts[s]++
	for _, l := range b.limits {
		l.counts[b.state]--
		l.counts[s]++
	}
	b.state = s
}

// open starts an attempt and asks the caller to make it.
func (ps *Pools) open(now Time, p *Pool) {
	ps.emit(Effect{Kind: Open, Backend: ps.start(now, p)})
}

// start counts a new attempt.
func (ps *Pools) start(now Time, p *Pool) *Backend {
	p.served.attempts++
	b := &Backend{pool: p, seq: p.served.attempts, limits: p.limits, generation: p.generation, startedAt: now}
	p.held++
	p.counts[Opening]++
	p.all.push(b, poolLink)
	for kind, l := range b.limits {
		l.open++
		l.counts[Opening]++
		l.all.push(b, kind)
	}
	p.refresh()
	ps.rearm(p) // one more backend may allow an idle one to time out
	return b
}

// forgetBackend uncounts b: its slot is free.
func (ps *Pools) forgetBackend(b *Backend) {
	p := b.pool
	p.held--
	p.counts[b.state]--
	p.all.remove(b, poolLink)
	for kind, l := range b.limits {
		l.open--
		l.counts[b.state]--
		l.all.remove(b, kind)
		ps.forget(l)
	}
}

// Opened says that the attempt succeeded: b is logged in. On a backend that was killed meanwhile it asks for a Close.
func (ps *Pools) Opened(now Time, b *Backend) {
	if b.state == Closing {
		ps.emit(Effect{Kind: Close, Backend: b, Reason: b.reason})
		return
	}
	b.must("Opened", Opening)
	p := b.pool
	p.served.opened++
	p.failures, p.retryAt = 0, 0
	b.relieve()
	b.openedAt = now
	if reason := ps.unwanted(now, b); reason != NoReason {
		ps.close(now, b, reason)
	} else {
		// Not asked to make room for another pool: whoever waited for this login is served once.
		ps.settle(now, b)
	}
	ps.changed(now, p)
	ps.plan(now, nil)
}

// OpenFailed says that the attempt is over and holds no slot. Permanent means that the server refused the login for
// good: if no other backend of the pool could serve, all waiters fail.
func (ps *Pools) OpenFailed(now Time, b *Backend, permanent bool) {
	if b.state == Closing {
		ps.Closed(now, b)
		return
	}
	b.must("OpenFailed", Opening)
	p := b.pool
	p.served.failures++
	ps.forgetBackend(b)
	ps.backOff(now, p)
	if permanent && p.counts[Idle]+p.counts[Active]+p.counts[Testing] == 0 {
		ps.failAll(p, LoginFailed)
	}
	ps.changed(now, p)
	ps.vanish(p)
	ps.plan(now, nil)
}

// Release says that b's client needs it no more and that b is clean.
func (ps *Pools) Release(now Time, b *Backend) {
	b.must("Release", Active)
	b.unlink()
	ps.spare(now, b, b.pool.settings.Reset)
}

// Ready says that the check, the reset or the clean-up of b succeeded.
func (ps *Pools) Ready(now Time, b *Backend) {
	b.must("Ready", Testing)
	ps.spare(now, b, false)
}

// Unlink says that b's client is gone and that the caller is cleaning b; answer with Ready or Discard.
func (ps *Pools) Unlink(now Time, b *Backend) {
	b.must("Unlink", Active)
	promised := b.pool.claims > 0
	b.unlink()
	b.become(Testing)
	b.pool.refreshQueued()
	if promised {
		ps.plan(now, nil)
	}
}

// spare finds the next use of b, which nobody uses: none, another pool's, a reset, the next waiter, or idleness.
func (ps *Pools) spare(now Time, b *Backend, reset bool) {
	p := b.pool
	promised := p.claims > 0 // p will need less, or for somebody younger, so others may have it
	if b.state != Testing {
		b.become(Testing) // so it counts as serving p's first waiter while others are weighed against it
	}
	p.refreshQueued()
	if reason := ps.unwanted(now, b); reason != NoReason {
		ps.close(now, b, reason)
		ps.changed(now, p)
		ps.plan(now, nil)
		return
	}
	if (promised || p.contended(now, b)) && ps.plan(now, b) {
		ps.changed(now, p)
		ps.plan(now, nil)
		return
	}
	if reset {
		ps.emit(Effect{Kind: Reset, Backend: b})
		return
	}
	ps.settle(now, b)
	if promised {
		ps.plan(now, nil)
	}
}

// unwanted returns why b, which nobody uses, must not be kept.
func (ps *Pools) unwanted(now Time, b *Backend) Reason {
	p := b.pool
	switch {
	case p.retired:
		return DatabaseRemoved
	case b.dismissed != NoReason:
		return b.dismissed
	case b.generation != p.generation:
		return p.obsolete
	case p.oversize() > 0:
		return TooManyServers
	}
	for _, l := range b.limits {
		excess := l.excess()
		if b.state == Opening && p.waiters.n > 0 {
			excess -= l.counts[Opening] - 1 // the other attempts can go instead: they serve nobody yet
		}
		if excess > 0 {
			return l.lowered
		}
	}
	if b.expired(now) {
		return ServerLifetimeOver
	}
	return NoReason
}

// settle gives b to the oldest waiter, else it becomes idle.
func (ps *Pools) settle(now Time, b *Backend) {
	p := b.pool
	if c := p.waiters.head; c != nil {
		p.waiters.remove(c)
		ps.link(now, c, b)
		p.refresh()
		ps.armWait(p)
		return
	}
	ps.idled++
	b.idleSince, b.idleOrder = now, ps.idled
	b.become(Idle)
	ps.armIdle(p, b)
}

// Discard says that the caller closes b by itself and reports Closed. Its client, if any, is unlinked. Discarding a
// backend that is closing already changes nothing.
func (ps *Pools) Discard(now Time, b *Backend, reason Reason) {
	if b.state == Closing {
		return
	}
	b.unlink()
	b.reason = reason
	b.become(Closing)
	ps.changed(now, b.pool)
	ps.plan(now, nil)
}

// close asks the caller to close b, which nobody uses. The caller of close calls changed and plan.
func (ps *Pools) close(now Time, b *Backend, reason Reason) {
	p := b.pool
	b.reason = reason
	b.become(Closing)
	switch reason {
	case Evicted:
		p.served.evictions++
	case ServerLifetimeOver:
		p.nextExpiry = after(now, p.expirySpacing())
	}
	ps.emit(Effect{Kind: Close, Backend: b, Reason: reason})
}

// kill asks the caller to end b now.
func (ps *Pools) kill(b *Backend, reason Reason) {
	c := b.client
	b.unlink()
	b.reason = reason
	b.become(Closing)
	ps.emit(Effect{Kind: Kill, Client: c, Backend: b, Reason: reason})
}

// Closed says that the server's slot of b is proved free.
func (ps *Pools) Closed(now Time, b *Backend) {
	b.must("Closed", Closing)
	p := b.pool
	if b.links[poolLink].owner == nil {
		panic("pool: Closed of a backend that was closed before")
	}
	ps.forgetBackend(b)
	ps.changed(now, p)
	ps.vanish(p)
	ps.plan(now, nil)
}

// lendable returns the idle backend to lend next, or nil.
func (p *Pool) lendable() *Backend {
	if p.settings.RoundRobin {
		return p.idle.oldest
	}
	return p.idle.latest
}

// lookBack is how many of the latest idle backends are looked at for one that suits a client best.
const lookBack = 16

// suitable returns the idle backend to lend to c, or nil: the next one, if none of the latest suits it better.
func (p *Pool) suitable(c *Client) *Backend {
	next := p.lendable()
	if next == nil || next.Like == c.Like || p.settings.RoundRobin {
		return next
	}
	for b, n := next.colder, 1; b != nil && n < lookBack; b, n = b.colder, n+1 {
		if b.Like == c.Like {
			return b
		}
	}
	return next
}

// unchecked says whether b was idle for so long that it must be checked before use.
func (p *Pool) unchecked(now Time, b *Backend) bool {
	return p.settings.Check && now-b.idleSince >= p.settings.CheckDelay
}

// serve lends idle backends to waiters, and has as many checked as there are waiters that no check covers yet.
func (ps *Pools) serve(now Time, p *Pool) {
	for p.waiters.n > 0 {
		b := p.lendable()
		if b == nil {
			return
		}
		if !p.unchecked(now, b) {
			c := p.waiters.head
			if s := p.suitable(c); !p.unchecked(now, s) {
				b = s
			}
			p.waiters.remove(c)
			ps.link(now, c, b)
			continue
		}
		if p.waiters.n <= p.counts[Testing] {
			return
		}
		b.become(Testing)
		ps.emit(Effect{Kind: Check, Backend: b})
	}
}

// changed brings everything derived up to date after a change in p, but for plan.
func (ps *Pools) changed(now Time, p *Pool) {
	ps.serve(now, p)
	p.refresh()
	ps.rearm(p)
}

// backendLink is a place in one backendList.
type backendLink struct {
	owner      *backendList
	prev, next *Backend
}

// poolLink is the index of the pool's list in Backend.links; those before it are the limits' by kind.
const poolLink = 3

// backendList is a list of backends in order of opening, linked through them.
type backendList struct{ head, tail *Backend }

func (l *backendList) push(b *Backend, link int) {
	b.links[link] = backendLink{owner: l, prev: l.tail}
	if l.tail != nil {
		l.tail.links[link].next = b
	} else {
		l.head = b
	}
	l.tail = b
}

func (l *backendList) remove(b *Backend, link int) {
	at := b.links[link]
	if at.prev != nil {
		at.prev.links[link].next = at.next
	} else {
		l.head = at.next
	}
	if at.next != nil {
		at.next.links[link].prev = at.prev
	} else {
		l.tail = at.prev
	}
	b.links[link] = backendLink{}
}

// idleList holds idle backends by the time they became idle, linked through them.
type idleList struct{ oldest, latest *Backend }

func (l *idleList) push(b *Backend) {
	b.colder, b.warmer = l.latest, nil
	if l.latest != nil {
		l.latest.warmer = b
	} else {
		l.oldest = b
	}
	l.latest = b
}

func (l *idleList) remove(b *Backend) {
	if b.colder != nil {
		b.colder.warmer = b.warmer
	} else {
		l.oldest = b.warmer
	}
	if b.warmer != nil {
		b.warmer.colder = b.colder
	} else {
		l.latest = b.colder
	}
	b.colder, b.warmer = nil, nil
}
