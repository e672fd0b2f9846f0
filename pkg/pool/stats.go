package pool

// Stats is a snapshot of one pool.
type Stats struct {
	Clients int // connected
	Waiting int // of them, queued

	Opening, Idle, Active, Testing, Closing int // backends by state

	OldestWait Time // when the oldest waiter began to wait; zero if nobody waits

	// Totals since the pool was made.
	Opened       int  // logins that succeeded
	OpenFailures int  // attempts that failed
	Evictions    int  // backends closed to make room for another pool
	Assignments  int  // links of a client and a backend
	WaitTime     Time // spent waiting by the clients that were linked
}

type counters struct {
	attempts, opened, failures, evictions, assignments int
	wait                                               Time
}

// Stats returns a snapshot.
func (p *Pool) Stats() Stats {
	s := Stats{
		Clients:      p.clients,
		Waiting:      p.waiters.n,
		Opening:      p.counts[Opening],
		Idle:         p.counts[Idle],
		Active:       p.counts[Active],
		Testing:      p.counts[Testing],
		Closing:      p.counts[Closing],
		Opened:       p.served.opened,
		OpenFailures: p.served.failures,
		Evictions:    p.served.evictions,
		Assignments:  p.served.assignments,
		WaitTime:     p.served.wait,
	}
	if c := p.waiters.head; c != nil {
		s.OldestWait = c.since
	}
	return s
}
