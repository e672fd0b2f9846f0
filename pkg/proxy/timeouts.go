package proxy

import (
	"time"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
)

// sweepMost and sweepLeast bound how often the clients' timeouts are looked at: four times in the shortest of them.
const (
	sweepMost  = 250 * time.Millisecond
	sweepLeast = 5 * time.Millisecond
)

// Timeouts are how long a client may take for something; 0 is forever.
type Timeouts struct {
	Query           time.Duration // from sending a query to the end of its answer
	Transaction     time.Duration // from its beginning, queueing included
	IdleTransaction time.Duration // in a transaction, since the last answer
	Idle            time.Duration // outside of one
}

// shortest of those that are set; 0 when none is.
func (t Timeouts) shortest() time.Duration {
	least := time.Duration(0)
	for _, d := range []time.Duration{t.Query, t.Transaction, t.IdleTransaction, t.Idle} {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// timeoutsOf are those of a client that was routed to this pool. Most clients of a pool have the same.
func (pl *pooled) timeoutsOf(r *Route) *Timeouts {
	if r.Timeouts == pl.route.Timeouts {
		return &pl.route.Timeouts
	}
	if t := pl.others[r.Timeouts]; t != nil {
		return t
	}
	if pl.others == nil {
		pl.others = map[Timeouts]*Timeouts{}
	}
	t := r.Timeouts
	pl.others[t] = &t
	return &t
}

// timed has the sweep run while somebody has a timeout as short as this.
func (p *Proxy) timed(shortest time.Duration) {
	if shortest <= 0 {
		return
	}
	every := min(max(shortest/4, sweepLeast), sweepMost)
	next := p.loop.Now() + every
	if p.sweepTimer.Armed() && p.sweepTimer.When() <= next {
		return
	}
	p.loop.Set(&p.sweepTimer, next, p.sweep)
}

// sweep ends clients whose time is over, and tells those that queue for long that they do.
func (p *Proxy) sweep() {
	shortest := time.Duration(0)
	note := func(d time.Duration) {
		if d > 0 && (shortest == 0 || d < shortest) {
			shortest = d
		}
	}
	for _, c := range p.clients {
		if c.pooled == nil || c.timeouts == nil {
			continue
		}
		note(c.timeouts.shortest())
		if c.state == stateWaiting && !c.notified {
			note(p.set.QueryWaitNotify)
			c.notify()
		}
		if code, message, over := c.overdue(); over {
			p.late = append(p.late, expiry{c, code, message})
		}
	}
	for i, e := range p.late {
		e.client.expire(e.code, e.message)
		p.late[i] = expiry{}
	}
	p.late = p.late[:0]
	p.timed(shortest)
	p.settle()
}

type expiry struct {
	client        *client
	code, message string
}

// overdue says which of the client's timeouts is over, in PostgreSQL's terms.
func (c *client) overdue() (code, message string, over bool) {
	now, t := c.p.now(), c.timeouts
	past := func(limit, since time.Duration) bool { return limit > 0 && now-since >= limit }
	switch {
	case (c.state == stateIdle || c.pc.Pinned && c.asked == 0 && c.server != nil && c.server.link.Status() == pgwire.StatusIdle) && past(t.Idle, c.quiet):
		return "57P05", "terminating connection due to idle-session timeout (client_idle_timeout)", true
	case c.server == nil: // idle, waiting, or on its way out
	case c.asked != 0 && past(t.Query, c.asked):
		return "57014", "canceling statement due to statement timeout (query_timeout)", true
	case c.asked == 0 && c.server.link.Status() != pgwire.StatusIdle && past(t.IdleTransaction, c.quiet):
		return "25P03", "terminating connection due to idle-in-transaction timeout (idle_transaction_timeout)", true
	case c.started != 0 && past(t.Transaction, c.started):
		return "25P04", "terminating connection due to transaction timeout (transaction_timeout)", true
	}
	return "", "", false
}

// expire ends the client. What it left behind is canceled and rolled back, and its server connection is closed if that
// does not work.
func (c *client) expire(code, message string) {
	if c.state == stateEnded || c.state == stateLinger {
		return
	}
	s := c.server
	if s != nil && s.link.Busy() {
		c.p.sendCancel(s)
	}
	c.counters().Timeouts++
	c.fail(code, message)
	c.linger(message)
	if s == nil || s.task != taskAbandon || c.p.set.CancelWaitTimeout <= 0 {
		return
	}
	c.p.loop.Set(&s.timer, c.p.loop.Now()+c.p.set.CancelWaitTimeout, func() {
		s.discard(pool.ClientLeftQuerying)
		c.p.settle()
	})
}

// notify tells a client once that it queues. Some drivers show it to people.
func (c *client) notify() {
	if after := c.p.set.QueryWaitNotify; after <= 0 || c.p.now()-c.started < after {
		return
	}
	c.notified = true
	c.write(pgwire.AppendNotice(nil, "No server connection available in postgres backend, client being queued"))
}
