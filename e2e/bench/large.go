package main

import (
	"context"
	"fmt"
	"time"
)

// The result of 100 MB: rows of 1 kB, as wide as a typical table's, so that it is also 100,000 messages.
const (
	largeQuery = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
	largeBytes = 100_000_000
	largeTimes = 3
)

// large measures one client that reads a big result as fast as it can.
func (l *lab) large(ctx context.Context, at instance) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, largeTimes*waitLimit)
	defer cancel()
	c, err := login(ctx, at.port, owner, l.keys, 256<<10)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if _, err := c.query("SELECT 1"); err != nil {
		return nil, err
	}
	var cost meter
	if err := cost.start(at); err != nil {
		return nil, err
	}
	began := time.Now()
	var size int64
	for range largeTimes {
		n, err := c.query(largeQuery)
		if err != nil {
			return nil, err
		}
		if n < largeBytes {
			return nil, fmt.Errorf("the large result had %d bytes, expected at least %d", n, largeBytes)
		}
		size += n
	}
	took := time.Since(began)
	if err := cost.stop(at); err != nil {
		return nil, err
	}
	mb := float64(size) / 1e6
	s := sample{rateMetric: mb / took.Seconds()}
	if at.process != nil {
		s[cpuMetric] = float64(cost.cpu.Microseconds()) / mb
		s[growthMetric] = float64(cost.peak - cost.rss)
	}
	return s, nil
}
