package pool

import (
	"cmp"
	"slices"
)

// SetCapacity says how many backends may be open on a server, over all its pools; n < 0 means any number, which is the
// initial state. A higher capacity serves waiters at once. A lower one closes idle backends now, the longest idle first,
// and busy ones when they are released; opening ones count and are closed when opened. What is still above n at the
// deadline is killed, session-mode backends and pinned ones last. A later call replaces both numbers. Zero is legal: clients wait.
func (ps *Pools) SetCapacity(now Time, server string, n int, deadline Time) {
	l := ps.limit(serverCapacity, server)
	l.max, l.deadline = max(n, -1), deadline
	ps.trim(now, l)
	if deadline <= now {
		ps.enforce(l)
	}
	ps.armLimit(l)
	ps.plan(now, nil)
	ps.forget(l)
}

// enforce kills what is above the capacity of a server, in the order of least harm.
func (ps *Pools) enforce(l *limit) {
	n := l.excess()
	if n <= 0 {
		return
	}
	victims := ps.chosen[:0]
	for b := l.all.head; b != nil; b = b.links[serverCapacity].next {
		if b.state != Closing {
			victims = append(victims, b)
		}
	}
	slices.SortFunc(victims, func(a, b *Backend) int {
		return cmp.Or(
			cmp.Compare(a.harm(), b.harm()),
			cmp.Compare(b.linkedAt, a.linkedAt), // the least work is lost
			comparePools(a.pool, b.pool),
			cmp.Compare(b.seq, a.seq),
		)
	})
	for _, b := range victims[:n] {
		ps.kill(b, CapacityLowered)
		b.pool.refresh()
		ps.rearm(b.pool)
	}
	clear(victims)
	ps.chosen = victims[:0]
}

// harm orders backends by what killing them destroys: an attempt, a check, a transaction, a session.
func (b *Backend) harm() int {
	switch {
	case b.state == Opening:
		return 0
	case b.state != Active:
		return 1
	case b.pool.settings.Mode != Session && !b.client.Pinned:
		return 2
	}
	return 3
}

// ServerStats returns the backends of a server that count in its capacity, those of them that are opening and closing,
// and the capacity, -1 if there is none.
func (ps *Pools) ServerStats(server string) (open, opening, closing, capacity int) {
	l := ps.shared[serverCapacity][server]
	if l == nil {
		return 0, 0, 0, -1
	}
	return l.open, l.counts[Opening], l.counts[Closing], l.max
}
