package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// sampleEvery is short against the life of a backend.
const sampleEvery = 100 * time.Millisecond

// play lets all applications work at an address and watches PostgreSQL meanwhile.
func (s *stage) play(ctx context.Context, title, backendRole, address string, d time.Duration) (phase, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", appRole, address, database))
	if err != nil {
		return phase{}, err
	}
	// Statements live for one transaction: nothing prepared is expected to be there in the next.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec

	sampling, stopSampling := context.WithCancel(ctx)
	defer stopSampling()
	watch, err := s.watch(sampling, backendRole)
	if err != nil {
		return phase{}, err
	}

	tallies := make([]*tally, services)
	load, stopLoad := context.WithTimeout(ctx, d)
	defer stopLoad()
	began := time.Now()
	warm := began.Add(d / 3)
	var apps sync.WaitGroup
	for i := range tallies {
		tallies[i] = &tally{}
		for range replicas * poolPerReplica {
			apps.Go(func() { appConnection(load, config.Copy(), tallies[i], warm) })
		}
	}
	ended := make(chan struct{})
	go func() { apps.Wait(); close(ended) }()

	screen := newScreen(title, watch)
	peak := 0
	for ticks := time.NewTicker(sampleEvery); ; {
		select {
		case <-ticks.C:
			connected := 0
			for _, t := range tallies {
				connected += t.now().connected
			}
			peak = max(peak, connected)
			screen.show(time.Since(began), tallies)
			continue
		case <-ended:
			ticks.Stop()
		}
		break
	}
	screen.close(time.Since(began), tallies)
	stopSampling()
	watch.wait()

	p := sum(title, tallies)
	p.peakConnections, p.peakBackends, p.took = peak, int(watch.peak.Load()), d
	if err := ctx.Err(); err != nil {
		return p, err
	}
	return p, watch.err
}

// watch samples pg_stat_activity over a connection of its own, opened before the load and kept.
type watch struct {
	backends atomic.Int32 // now, of the role
	peak     atomic.Int32
	done     chan struct{}
	err      error // read after done
}

func (s *stage) watch(ctx context.Context, role string) (*watch, error) {
	conn, err := pgx.Connect(ctx, s.postgres.URL("postgres", "", "postgres"))
	if err != nil {
		return nil, err
	}
	w := &watch{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer conn.Close(context.WithoutCancel(ctx))
		ticks := time.NewTicker(sampleEvery)
		defer ticks.Stop()
		for {
			var n int32
			err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", role).Scan(&n)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				w.err = fmt.Errorf("reading pg_stat_activity: %w", err)
				return
			}
			w.backends.Store(n)
			w.peak.Store(max(n, w.peak.Load()))
			select {
			case <-ticks.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return w, nil
}

func (w *watch) wait() { <-w.done }
