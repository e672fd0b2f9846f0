package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// Counters count events since the start, over all pools.
type Counters struct {
	Accepted           uint64 // client connections
	Logins             uint64 // that succeeded
	LoginFailures      uint64
	WaitFailures       uint64 // clients that got no server connection
	Timeouts           uint64 // clients whose time was over, see Timeouts
	ProtocolViolations uint64 // of clients
	ServerViolations   uint64 // of servers
	ServerCrashes      uint64 // server connections lost while a client used them
	Dials              uint64
	DialFailures       uint64
	Backpressure       [pool.Pressures]uint64 // by scope
	Cancels            uint64
}

// PoolCounters count what one pool has done since it was made. Bytes are those of clients and of servers as read.
type PoolCounters struct {
	Transactions    uint64
	Queries         uint64
	Assignments     uint64
	BytesReceived   uint64
	BytesSent       uint64
	TransactionTime time.Duration // queueing included, as PgBouncer counts
	QueryTime       time.Duration
	WaitTime        time.Duration
	Probes          uint64                          // queries about what clients left in their sessions
	Pins            [len(session.PinReasons)]uint64 // clients that were kept at their server connection, by reason
	Repairs         uint64                          // batches said again because a prepared statement was out of date
	PinsRefused     uint64                          // statements and clients, because too many were
}

// PoolSnapshot is one pool at one moment.
type PoolSnapshot struct {
	Key      pool.Key
	Settings pool.Settings
	Stats    pool.Stats
	Counts   PoolCounters
	Pinned   int // clients that keep a server connection for themselves, or are about to
	// OldestWait is how long the oldest waiter has waited.
	OldestWait time.Duration
}

// Snapshot is the proxy at one moment.
type Snapshot struct {
	Counters Counters
	// DialFailures are Counters.DialFailures by SQLSTATE: "none" without one, "other" for the less common ones.
	DialFailures map[string]uint64
	Pools        []PoolSnapshot
	Clients      int // connections, logins under way included
	Servers      int
	BuffersLent  int
	BytesLent    int
	Draining     bool
	Uptime       time.Duration
}

// ErrStopped says that the proxy has ended.
var ErrStopped = errors.New("the pooler has stopped")

// Snapshot takes a consistent picture between two turns of the loop.
func (p *Proxy) Snapshot(ctx context.Context) (Snapshot, error) {
	done := make(chan Snapshot, 1)
	if !p.loop.Post(func() { done <- p.snapshot() }) {
		return Snapshot{}, ErrStopped
	}
	select {
	case s := <-done:
		return s, nil
	case <-ctx.Done():
		return Snapshot{}, ctx.Err()
	}
}

func (p *Proxy) snapshot() Snapshot {
	now := p.now()
	s := Snapshot{Counters: p.counters, Clients: len(p.clients), Servers: len(p.servers), Draining: p.draining, Uptime: now}
	s.DialFailures = p.failuresByState()
	s.BuffersLent, s.BytesLent = p.loop.Buffers.Lent()
	for _, bp := range p.pools.All() {
		pl := p.pooled[bp.Key()]
		if pl == nil || pl.pool != bp {
			continue
		}
		ps := PoolSnapshot{Key: bp.Key(), Settings: bp.Settings(), Stats: bp.Stats(), Counts: pl.counts, Pinned: pl.pinned}
		if ps.Stats.Waiting > 0 {
			ps.OldestWait = now - ps.Stats.OldestWait
		}
		s.Pools = append(s.Pools, ps)
	}
	return s
}
