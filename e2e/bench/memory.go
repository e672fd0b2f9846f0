package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	fewClients  = 1000
	manyClients = 5000
)

// memory measures a pooler nobody has used yet: what it holds by itself, and how much more for each idle client.
func (l *lab) memory(ctx context.Context, name string) (sample, error) {
	at, err := l.start(ctx, name, "trust", "disable")
	if err != nil {
		return nil, err
	}
	defer at.stop()
	idle, err := settled(ctx, at)
	if err != nil {
		return nil, err
	}
	clients := make([]*client, 0, manyClients)
	defer func() {
		for _, c := range clients {
			c.conn.Close()
		}
	}()
	grow := func(n int) (float64, error) {
		more, err := l.crowd(ctx, at, n-len(clients))
		clients = append(clients, more...)
		if err != nil {
			return 0, err
		}
		now, err := settled(ctx, at)
		return float64(now-idle) * 1024 / float64(n), err
	}
	few, err := grow(fewClients)
	if err != nil {
		return nil, err
	}
	many, err := grow(manyClients)
	if err != nil {
		return nil, err
	}
	path := l.pgbouncer
	if name == sidecarTarget {
		path = l.sidecar
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return sample{
		idleMetric: float64(idle), perClient1Metric: few, perClientMetric: many, binaryMetric: float64(info.Size()) / 1024,
	}, nil
}

// crowd logs in n clients, a few at a time, and lets each run one query.
func (l *lab) crowd(ctx context.Context, at instance, n int) ([]*client, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*waitLimit)
	defer cancel()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards clients and failed
		clients []*client
		failed  error
		todo    = make(chan struct{}, n)
	)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range 8 {
		wg.Go(func() {
			for range todo {
				c, err := login(ctx, at.port, owner, l.keys, 512)
				if err == nil {
					_, err = c.query("SELECT 1")
				}
				mu.Lock()
				if c != nil {
					clients = append(clients, c)
				}
				if err != nil {
					failed = fmt.Errorf("idle client: %w", err)
				}
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	return clients, failed
}

// settled waits until resident memory has stopped falling (a collector gives memory back late) and returns it in KiB.
func settled(ctx context.Context, at instance) (int, error) {
	const step, patience, limit = 500 * time.Millisecond, 4, 30
	lowest, since := 0, 0
	for range limit {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(step):
		}
		m, err := at.process.Memory()
		if err != nil {
			return 0, err
		}
		if lowest == 0 || m.Now < lowest {
			lowest, since = m.Now, 0
		} else if since++; since == patience {
			break
		}
	}
	return lowest, nil
}
