package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// stormWorkers log in one after the other, each as fast as it can.
const stormWorkers = 16

// storm measures logins: connect, SCRAM-SHA-256, one query, disconnect.
func (l *lab) storm(ctx context.Context, at instance, d time.Duration) (sample, error) {
	var cost meter
	if err := cost.start(at); err != nil {
		return nil, err
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards all and errs
		all   latencies
		errs  error
		began = time.Now()
	)
	for range stormWorkers {
		wg.Go(func() {
			var mine latencies
			var err error
			for time.Since(began) < d && err == nil {
				var took time.Duration
				if took, err = l.visit(ctx, at); err == nil {
					mine = append(mine, took)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all, errs = append(all, mine...), errors.Join(errs, err)
		})
	}
	wg.Wait()
	took := time.Since(began)
	if errs != nil {
		return nil, fmt.Errorf("login: %w", errs)
	}
	if err := cost.stop(at); err != nil {
		return nil, err
	}
	s := all.sample()
	s[loginsMetric] = float64(len(all)) / took.Seconds()
	if at.process != nil {
		s[cpuMetric] = float64(cost.cpu.Microseconds()) / float64(len(all))
		s[peakMetric] = float64(cost.peak)
	}
	return s, nil
}

func (l *lab) visit(ctx context.Context, at instance) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	began := time.Now()
	c, err := login(ctx, at.port, guest, l.keys, 2048)
	if err != nil {
		return 0, err
	}
	defer c.close()
	_, err = c.query("SELECT 1")
	return time.Since(began), err
}
