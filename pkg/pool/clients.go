package pool

import "errors"

// Client is one application connection. The caller embeds it; the zero value is a client that is not connected.
type Client struct {
	Ref any // the caller's
	// Like says which backends suit the client best: those with an equal one. It is the caller's to set.
	Like any
	// Pinned says that the client keeps its backend over the end of its transactions. It is the caller's to set.
	Pinned bool

	pool       *Pool
	backend    *Backend
	prev, next *Client // in the pool's queue
	since      Time
	waiting    bool
	guest      bool // counts in no limit
}

// Pool returns the pool the client is connected to, or nil.
func (c *Client) Pool() *Pool { return c.pool }

// Backend returns the backend linked to the client, or nil.
func (c *Client) Backend() *Backend { return c.backend }

// Waiting says whether the client is queued.
func (c *Client) Waiting() bool { return c.waiting }

// Since returns when the client last called Acquire: the start of its wait while it waits.
func (c *Client) Since() Time { return c.since }

// ErrRemoved is returned by Connect for a pool that was retired.
var ErrRemoved = errors.New("database removed")

// Connect counts c as a client of p. It returns a *LimitError when a limit on clients is reached, and ErrRemoved when p
// was retired.
func (ps *Pools) Connect(now Time, p *Pool, c *Client) error {
	if c.pool != nil {
		panic("pool: Connect of a client that is connected already")
	}
	if p.retired {
		return ErrRemoved
	}
	if err := ps.admit(p); err != nil {
		return err
	}
	c.pool = p
	ps.count(p, 1)
	if p.clients == 1 && p.settings.MinSize > 0 { // only the first one can change what the pool wants
		ps.changed(now, p)
		ps.plan(now, nil)
	}
	return nil
}

func (ps *Pools) count(p *Pool, n int) {
	ps.clients += n
	p.clients += n
	p.limits[databaseBackends].clients += n
	p.limits[userBackends].clients += n
}

// Disconnect ends c, which may be queued but not linked.
func (ps *Pools) Disconnect(now Time, c *Client) {
	p := c.pool
	switch {
	case p == nil:
		panic("pool: Disconnect of a client that is not connected")
	case c.backend != nil:
		panic("pool: Disconnect of a client that still owns a backend; release or discard that first")
	}
	if c.guest {
		p.clients--
	} else {
		ps.count(p, -1)
	}
	c.pool, c.guest = nil, false
	if c.waiting {
		p.waiters.remove(c)
		ps.changed(now, p)
		ps.plan(now, nil)
	} else if p.clients == 0 {
		ps.changed(now, p) // nothing is kept warm for nobody
	}
	ps.vanish(p)
}

// Acquire asks for a backend for c: it is linked now, or queued behind everybody who waits.
func (ps *Pools) Acquire(now Time, c *Client) {
	p := c.pool
	switch {
	case p == nil:
		panic("pool: Acquire by a client that is not connected")
	case c.waiting:
		panic("pool: Acquire by a client that is waiting already")
	case c.backend != nil:
		panic("pool: Acquire by a client that owns a backend already")
	}
	c.since = now
	if p.retired {
		ps.emit(Effect{Kind: Fail, Client: c, Reason: DatabaseRemoved})
		return
	}
	if p.waiters.n == 0 {
		if b := p.suitable(c); b != nil && !p.unchecked(now, b) {
			ps.link(now, c, b)
			return
		}
	}
	p.waiters.push(c)
	ps.serve(now, p)
	p.refresh()
	ps.armWait(p)
	if p.hungryAt != 0 && p.hopeful() && !p.heldBack() {
		ps.plan(now, nil)
	}
}

// Exchange says that b does not suit the client it was linked to: the caller closes it by itself and reports Closed, and
// the client waits on, at the place it had.
func (ps *Pools) Exchange(now Time, b *Backend, reason Reason) {
	b.must("Exchange", Active)
	c, p := b.client, b.pool
	b.unlink()
	b.reason = reason
	b.become(Closing)
	if p.retired {
		ps.emit(Effect{Kind: Fail, Client: c, Reason: DatabaseRemoved})
	} else {
		p.waiters.pushFront(c)
		ps.armWait(p)
	}
	ps.changed(now, p)
	ps.plan(now, nil)
}

// link gives b, which nobody uses, to c, which is in no queue.
func (ps *Pools) link(now Time, c *Client, b *Backend) {
	c.backend, b.client = b, c
	b.linkedAt = now
	b.served = true
	b.become(Active)
	p := b.pool
	p.served.assignments++
	p.served.wait += now - c.since
	ps.emit(Effect{Kind: Link, Client: c, Backend: b})
}

// unlink parts b and its client.
func (b *Backend) unlink() {
	if c := b.client; c != nil {
		c.backend, b.client = nil, nil
	}
}

// fail takes c, which waits, out of the queue.
func (ps *Pools) fail(p *Pool, c *Client, reason Reason) {
	p.waiters.remove(c)
	ps.emit(Effect{Kind: Fail, Client: c, Reason: reason})
}

func (ps *Pools) failAll(p *Pool, reason Reason) {
	for p.waiters.head != nil {
		ps.fail(p, p.waiters.head, reason)
	}
}

// clientList is a queue of clients, linked through them.
type clientList struct {
	head, tail *Client
	n          int
}

func (l *clientList) push(c *Client) {
	c.waiting = true
	c.prev, c.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = c
	} else {
		l.head = c
	}
	l.tail = c
	l.n++
}

func (l *clientList) pushFront(c *Client) {
	c.waiting = true
	c.prev, c.next = nil, l.head
	if l.head != nil {
		l.head.prev = c
	} else {
		l.tail = c
	}
	l.head = c
	l.n++
}

func (l *clientList) remove(c *Client) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.tail = c.prev
	}
	c.prev, c.next, c.waiting = nil, nil, false
	l.n--
}
