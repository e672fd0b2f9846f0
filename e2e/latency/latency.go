// Package latency summarizes how long things took. It refuses to estimate: every figure is a value that really occurred.
package latency

import "time"

// Percentile of sorted values by nearest rank; 0 of none.
func Percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}
