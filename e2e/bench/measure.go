package main

import (
	"slices"
	"time"

	"github.com/pgberth/pgberth/e2e/latency"
)

// What is measured. A name ends in its unit.
const (
	tpsMetric        = "tps"
	meanMetric       = "mean_ms"
	p50Metric        = "p50_ms"
	p99Metric        = "p99_ms"
	cpuMetric        = "cpu_us"       // of the pooler's process, for each transaction, login or MB
	peakMetric       = "rss_peak_kib" // highest while the case ran
	loginsMetric     = "logins_per_s"
	rateMetric       = "mb_per_s"
	growthMetric     = "rss_growth_kib"
	idleMetric       = "rss_idle_kib"       // nobody connected yet
	perClientMetric  = "rss_per_client_b"   // of thousands of idle clients, each logged in and with one query behind it
	perClient1Metric = "rss_per_client1k_b" // the same of the first thousand
	binaryMetric     = "binary_kib"
)

// sample is what one measurement of one target found.
type sample map[string]float64

// latencies of single transactions.
type latencies []time.Duration

func (l latencies) sample() sample {
	slices.Sort(l)
	var sum time.Duration
	for _, d := range l {
		sum += d
	}
	return sample{
		meanMetric: milliseconds(sum) / float64(len(l)),
		p50Metric:  milliseconds(latency.Percentile(l, 50)),
		p99Metric:  milliseconds(latency.Percentile(l, 99)),
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// meter reads what a pooler costs between start and stop.
type meter struct {
	cpu  time.Duration
	rss  int // KiB at start
	peak int // KiB, highest since start
}

func (m *meter) start(at instance) error {
	if at.process == nil {
		return nil
	}
	if err := at.process.ResetPeak(); err != nil {
		return err
	}
	memory, err := at.process.Memory()
	if err != nil {
		return err
	}
	m.rss = memory.Now
	m.cpu, err = at.process.CPU()
	return err
}

func (m *meter) stop(at instance) error {
	if at.process == nil {
		return nil
	}
	cpu, err := at.process.CPU()
	if err != nil {
		return err
	}
	m.cpu = cpu - m.cpu
	memory, err := at.process.Memory()
	m.peak = memory.Peak
	return err
}
