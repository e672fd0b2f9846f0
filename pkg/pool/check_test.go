package pool

import (
	"fmt"
	"slices"
)

// check verifies the invariants written on the fields against counts made anew, and that nothing was left undone. Every
// test calls it after every step.
func (ps *Pools) check(now Time) error {
	if !slices.IsSortedFunc(ps.sorted, comparePools) {
		return fmt.Errorf("pools are not sorted: %v", ps.sorted)
	}
	live, clients := 0, 0
	for _, p := range ps.sorted {
		if err := p.check(now); err != nil {
			return fmt.Errorf("pool %v: %w", p.key, err)
		}
		if !p.retired {
			live++
			if ps.byKey[p.key] != p {
				return fmt.Errorf("pool %v is not found by its key", p.key)
			}
		}
		clients += p.clients
	}
	if live != len(ps.byKey) || clients != ps.clients {
		return fmt.Errorf("%d pools by key, %d live; %d clients, counted %d", len(ps.byKey), live, ps.clients, clients)
	}
	for kind, byName := range ps.shared {
		for name, l := range byName {
			if l.name != name || l.kind != limitKind(kind) {
				return fmt.Errorf("limit %q of kind %d is filed as %q of kind %d", l.name, l.kind, name, kind)
			}
			if err := l.check(ps); err != nil {
				return fmt.Errorf("limit %q of kind %d: %w", name, kind, err)
			}
		}
	}
	if err := ps.checkLists(); err != nil {
		return err
	}
	effects := len(ps.effects)
	ps.plan(now, nil)
	if len(ps.effects) != effects {
		e := ps.effects[effects]
		return fmt.Errorf("%v was left undone, for pool %v (%v)", e.Kind, e.Backend.pool.key, e.Reason)
	}
	return nil
}

func (p *Pool) check(now Time) error {
	var counts [states]int
	held, last := 0, 0
	for b := p.all.head; b != nil; b = b.links[poolLink].next {
		held++
		counts[b.state]++
		if b.seq <= last || b.pool != p || b.links[poolLink].owner != &p.all || b.chosen {
			return fmt.Errorf("backend %d after %d is out of place", b.seq, last)
		}
		last = b.seq
		if (b.client != nil) != (b.state == Active) {
			return fmt.Errorf("backend %d is %v, linked: %v", b.seq, b.state, b.client != nil)
		}
		if c := b.client; c != nil && (c.backend != b || c.pool != p || c.waiting) {
			return fmt.Errorf("backend %d is linked to a client that does not agree", b.seq)
		}
		if b.state == Idle && (p.retired || b.generation != p.generation) {
			return fmt.Errorf("backend %d should not be idle", b.seq)
		}
	}
	if held != p.held || counts != p.counts {
		return fmt.Errorf("%d backends %v, counted %d %v", p.held, p.counts, held, counts)
	}
	idle := 0
	for b, colder := p.idle.oldest, (*Backend)(nil); b != nil; b, colder = b.warmer, b {
		idle++
		if b.state != Idle || b.colder != colder || colder != nil && b.idleSince < colder.idleSince {
			return fmt.Errorf("the idle list is broken at backend %d, which is %v", b.seq, b.state)
		}
	}
	waiters := 0
	for c, before := p.waiters.head, (*Client)(nil); c != nil; c, before = c.next, c {
		waiters++
		if !c.waiting || c.pool != p || c.backend != nil || c.prev != before || before != nil && c.since < before.since {
			return fmt.Errorf("the queue is broken at place %d", waiters)
		}
	}
	switch {
	case idle != counts[Idle] || waiters != p.waiters.n || waiters > p.clients:
		return fmt.Errorf("%d idle of %d, %d waiters, counted %d, of %d clients", idle, counts[Idle], p.waiters.n, waiters, p.clients)
	case p.retired && waiters > 0:
		return fmt.Errorf("retired with %d waiters", waiters)
	case waiters > 0 && idle > 0 && (!p.unchecked(now, p.lendable()) || waiters > counts[Testing]):
		return fmt.Errorf("%d wait while %d are idle and %d are tested", waiters, idle, counts[Testing])
	case p.oversize() > 0 && idle > 0:
		return fmt.Errorf("%d idle with %d too many", idle, p.oversize())
	case (p.hungryAt != 0) != (p.wanted() > 0) || (p.shortAt != 0) != (p.shortfall() > 0):
		return fmt.Errorf("hungry %v, wanted %d; short %v, shortfall %d", p.hungryAt != 0, p.wanted(), p.shortAt != 0, p.shortfall())
	}
	at, armed := p.timer.at, p.timer
	p.ps.rearm(p)
	exact := p.timer.at
	p.ps.timers.set(&p.timer, armed.at)
	if at > exact {
		return fmt.Errorf("timer at %v, but something is due at %v", at, exact)
	}
	return nil
}

func (l *limit) check(ps *Pools) error {
	var counts [states]int
	open, hungry, pools, clients := 0, 0, 0, 0
	for b := l.all.head; b != nil; b = b.links[l.kind].next {
		open++
		counts[b.state]++
		if b.limits[l.kind] != l || b.links[l.kind].owner != &l.all {
			return fmt.Errorf("backend %d of pool %v is out of place", b.seq, b.pool.key)
		}
	}
	for _, p := range ps.sorted {
		if p.limits[l.kind] != l {
			continue
		}
		pools++
		clients += p.clients
		if p.hungryAt != 0 {
			hungry++
		}
	}
	if l.kind == serverCapacity {
		clients = l.clients
	}
	switch {
	case open != l.open || counts != l.counts:
		return fmt.Errorf("%d backends %v, counted %d %v", l.open, l.counts, open, counts)
	case hungry != l.hungry || pools != l.pools || clients != l.clients:
		return fmt.Errorf("hungry %d pools %d clients %d, counted %d %d %d", l.hungry, l.pools, l.clients, hungry, pools, clients)
	case l.excess() > 0 && l.counts[Idle] > 0:
		return fmt.Errorf("%d idle with %d too many", l.counts[Idle], l.excess())
	case l.kind == serverCapacity && l.excess() > 0 && l.deadline < Never && l.deadline < l.timer.at:
		return fmt.Errorf("%d too many, deadline %v, timer at %v", l.excess(), l.deadline, l.timer.at)
	}
	return nil
}

func (ps *Pools) checkLists() error {
	for i, p := range ps.hungry {
		if p.hungryAt != i+1 {
			return fmt.Errorf("pool %v is hungry number %d, not %d", p.key, i, p.hungryAt-1)
		}
	}
	for i, p := range ps.short {
		if p.shortAt != i+1 {
			return fmt.Errorf("pool %v is short number %d, not %d", p.key, i, p.shortAt-1)
		}
	}
	for i, t := range ps.timers {
		if t.index != i || i > 0 && ps.timers[(i-1)/2].at > t.at || t.at == Never {
			return fmt.Errorf("the timers are out of order at %d", i)
		}
	}
	return nil
}
