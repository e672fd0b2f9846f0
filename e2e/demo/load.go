package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgberth/pgberth/e2e/latency"
)

const (
	// An application thinks between transactions; so many connections are not all busy at once.
	thinkLeast, thinkMost = 200 * time.Millisecond, 600 * time.Millisecond
	// Of ten transactions so many write.
	writesOfTen = 2
	// After a refused or broken connection an application waits before it tries again.
	retryLeast, retryMost = 2 * time.Second, 6 * time.Second
	// A request nobody answers is an error.
	patience = 15 * time.Second
)

// tooManyClients is the SQLSTATE of a server that is full.
const tooManyClients = "53300"

// tally is what the connections of one service have seen; all methods may be called at once.
type tally struct {
	mu sync.Mutex // guards the rest; held for a moment only
	counts
	latencies []time.Duration // of transactions that succeeded, once warm
}

type counts struct {
	connected    int // now
	transactions int
	writes       int // transactions that wrote, among them
	refused      int // connections refused because the server is full
	failed       int // everything else that went wrong
	firstRefusal string
	firstFailure string
}

func (t *tally) note(change func(*counts)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.counts)
}

// done counts a transaction; its latency counts once everybody has had time to connect.
func (t *tally) done(took time.Duration, wrote, warm bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.transactions++
	if wrote {
		t.writes++
	}
	if warm {
		t.latencies = append(t.latencies, took)
	}
}

func (t *tally) error(err error) {
	text := err.Error()
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		text = fmt.Sprintf("%s: %s (SQLSTATE %s)", answer.Severity, answer.Message, answer.Code)
	}
	t.note(func(c *counts) {
		if answer != nil && answer.Code == tooManyClients {
			c.refused++
			c.firstRefusal = cmp.Or(c.firstRefusal, text)
		} else {
			c.failed++
			c.firstFailure = cmp.Or(c.firstFailure, text)
		}
	})
}

func (t *tally) now() counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts
}

// appConnection is one place in an application's pool: it connects, and connects again when it has to, and works until
// the context ends, finishing the transaction it is in.
func appConnection(ctx context.Context, config *pgx.ConnConfig, t *tally, warm time.Time) {
	for ctx.Err() == nil {
		if err := serve(ctx, config, t, warm); err != nil {
			t.error(err)
			pause(ctx, retryLeast, retryMost)
		}
	}
}

func serve(ctx context.Context, config *pgx.ConnConfig, t *tally, warm time.Time) error {
	connecting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, config)
	if ctx.Err() != nil && err != nil {
		return nil // given up because the load has ended
	}
	if err != nil {
		return err
	}
	// A transaction that has begun is finished, also when the load ends meanwhile.
	finish := context.WithoutCancel(ctx)
	defer closeSoon(finish, conn)
	t.note(func(c *counts) { c.connected++ })
	defer t.note(func(c *counts) { c.connected-- })
	for {
		pause(ctx, thinkLeast, thinkMost)
		if ctx.Err() != nil {
			return nil
		}
		began := time.Now()
		wrote := rand.IntN(10) < writesOfTen
		if err := transact(finish, conn, wrote); err != nil {
			return err
		}
		t.done(time.Since(began), wrote, began.After(warm))
	}
}

// closeSoon says goodbye, which waits for the server to hang up, but not for long.
func closeSoon(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is over either way
}

// transact reads an account, or moves money to one and keeps a record of it, as two statements that belong together.
func transact(ctx context.Context, conn *pgx.Conn, write bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	account := 1 + rand.IntN(accounts)
	if !write {
		var balance int
		return conn.QueryRow(ctx, "SELECT abalance FROM pgbench_accounts WHERE aid = $1", account).Scan(&balance)
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		delta := rand.IntN(10_001) - 5_000
		if _, err := tx.Exec(ctx, "UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2", delta, account); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, $1, $2, now())", account, delta)
		return err
	})
}

func pause(ctx context.Context, least, most time.Duration) {
	timer := time.NewTimer(least + rand.N(most-least))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// phase is what one load has shown.
type phase struct {
	title           string
	peakConnections int // application connections open at once
	peakBackends    int // by pg_stat_activity, only of the role that was looked at
	transactions    int
	writes          int
	refused, failed int
	firstRefusal    string
	firstFailure    string
	p50, p99        time.Duration
	took            time.Duration
}

func (p phase) errors() int { return p.refused + p.failed }

func sum(title string, tallies []*tally) phase {
	p := phase{title: title}
	var all []time.Duration
	for _, t := range tallies {
		c := t.now()
		p.transactions += c.transactions
		p.writes += c.writes
		p.refused += c.refused
		p.failed += c.failed
		p.firstRefusal = cmp.Or(p.firstRefusal, c.firstRefusal)
		p.firstFailure = cmp.Or(p.firstFailure, c.firstFailure)
		t.mu.Lock()
		all = append(all, t.latencies...)
		t.mu.Unlock()
	}
	slices.Sort(all)
	p.p50, p.p99 = latency.Percentile(all, 50), latency.Percentile(all, 99)
	return p
}
