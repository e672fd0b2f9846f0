package latency

import (
	"testing"
	"time"
)

func TestPercentileIsAValueThatOccurred(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		of   []time.Duration
		p    int
		want time.Duration
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{hundred[:7], 99, 7},
		{hundred[:3], 50, 2},
		{hundred[:1], 50, 1},
		{nil, 99, 0},
	} {
		if got := Percentile(c.of, c.p); got != c.want {
			t.Errorf("percentile %d of %d values is %v, want %v", c.p, len(c.of), got, c.want)
		}
	}
}
