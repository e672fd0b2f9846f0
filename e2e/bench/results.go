package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// results hold every sample of a run.
type results struct {
	rows []row
}

type row struct {
	name, target string
	round        int
	found        sample
}

func (r *results) add(name, target string, round int, found sample) {
	r.rows = append(r.rows, row{name, target, round, found})
}

// has tells whether a case was measured.
func (r *results) has(name string) bool {
	return slices.ContainsFunc(r.rows, func(row row) bool { return row.name == name })
}

// values of one metric, in the order of the rounds.
func (r *results) values(name, target, metric string) []float64 {
	var all []float64
	for _, row := range r.rows {
		if v, ok := row.found[metric]; ok && row.name == name && row.target == target {
			all = append(all, v)
		}
	}
	return all
}

func (r *results) median(name, target, metric string) float64 {
	return median(r.values(name, target, metric))
}

// median of no values is NaN, which prints as a dash.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// spread is what two runs of the same PgBouncer differ by: the ratio of their medians, and the lowest and the highest
// ratio of one round. A ratio inside it says nothing.
type spread struct{ middle, low, high float64 }

func (r *results) spread(name, metric string) spread {
	first, again := r.values(name, pgbouncerTarget, metric), r.values(name, againTarget, metric)
	s := spread{median(again) / median(first), math.NaN(), math.NaN()}
	for i := range min(len(first), len(again)) {
		ratio := again[i] / first[i]
		if i == 0 {
			s.low, s.high = ratio, ratio
		}
		s.low, s.high = min(s.low, ratio), max(s.high, ratio)
	}
	return s
}

func (s spread) String() string {
	if math.IsNaN(s.middle) || math.IsInf(s.middle, 0) {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", s.middle, s.low, s.high)
}

// A bar is what the sidecar has to reach: a ratio to PgBouncer, or a plain value.
type bar struct {
	cases  []string
	metric string
	most   float64 // 0: there is no upper bar
	least  float64 // 0: there is no lower bar
	plain  bool
}

var (
	busy     = []string{"simple-16", "simple-64", "simple-200", "ext-16", "ext-64", "ext-200", "prep-16", "prep-64", "prep-200"}
	prepared = []string{"prep-16", "prep-64", "prep-200"}
	secured  = []string{"tls-16", "tls-64", "tls-200"}
	bars     = []bar{
		{cases: []string{"simple-16", "ext-16"}, metric: cpuMetric, most: 1},
		{cases: []string{"simple-64", "simple-200", "ext-64", "ext-200"}, metric: cpuMetric, most: 0.92},
		{cases: prepared, metric: cpuMetric, most: 1},
		{cases: secured, metric: cpuMetric, most: 1.15},
		{cases: slices.Concat(busy, secured), metric: tpsMetric, least: 1},
		{cases: slices.Concat(busy, secured), metric: p99Metric, most: 1},
		{cases: []string{"simple-1", "ext-1", "prep-1"}, metric: meanMetric, most: 1.10},
		{cases: []string{stormCase}, metric: loginsMetric, least: 1},
		{cases: []string{largeCase}, metric: rateMetric, least: 1},
		{cases: []string{largeCase}, metric: growthMetric, most: 8 << 10, plain: true},
		{cases: []string{memoryCase}, metric: idleMetric, most: 16 << 10, plain: true},
		{cases: []string{memoryCase}, metric: perClientMetric, most: 2 << 10, plain: true},
		{cases: []string{memoryCase}, metric: binaryMetric, most: 20 << 10, plain: true},
	}
)

// verdict of the bar that stands for a case and metric; empty without one.
func verdict(name, metric string, sidecar, pgbouncer float64, noise spread) string {
	for _, b := range bars {
		if b.metric != metric || !slices.Contains(b.cases, name) || math.IsNaN(sidecar) {
			continue
		}
		value, slack := sidecar, spread{1, 1, 1}
		if !b.plain {
			value = sidecar / pgbouncer
			if !math.IsNaN(noise.low) {
				slack = spread{noise.middle, min(1, noise.low), max(1, noise.high)}
			}
		}
		text, met, near := fmt.Sprintf("at most %g", b.most), value <= b.most, value <= b.most*slack.high
		if b.least > 0 {
			text, met, near = fmt.Sprintf("at least %g", b.least), value >= b.least, value >= b.least*slack.low
		}
		switch {
		case math.IsNaN(value):
			return text + ": not measured"
		case met:
			return text + ": met"
		case near:
			return text + ": met within the noise"
		}
		return text + ": MISSED"
	}
	return ""
}

// table is for people, in Markdown: medians over the rounds.
func (r *results) table(s settings) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMedians of %d rounds of %g s each; ratio is sidecar / pgbouncer, noise is PgBouncer against itself: the ratio of the "+
		"medians (lowest and highest of a round).\n\n", s.rounds, s.duration.Seconds())
	b.WriteString("| case | metric | postgres | pgbouncer | sidecar | ratio | noise | bar |\n|---|---|---:|---:|---:|---:|---|---|\n")
	var met, missed int
	for _, name := range s.cases {
		for _, metric := range r.metrics(name) {
			ours, theirs := r.median(name, sidecarTarget, metric), r.median(name, pgbouncerTarget, metric)
			noise := r.spread(name, metric)
			judged := verdict(name, metric, ours, theirs, noise)
			switch {
			case strings.HasSuffix(judged, "MISSED"):
				missed++
			case strings.Contains(judged, ": met"):
				met++
			}
			ratio := "-"
			if r := ours / theirs; !math.IsNaN(r) && !math.IsInf(r, 0) {
				ratio = fmt.Sprintf("%.2f", r)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", name, metric,
				readable(r.median(name, directTarget, metric)), readable(theirs), readable(ours), ratio, noise, judged)
		}
	}
	fmt.Fprintf(&b, "\nbars: %d met, %d missed\n", met, missed)
	return b.String()
}

// metrics that a case has, in a fixed order.
func (r *results) metrics(name string) []string {
	seen := map[string]bool{}
	for _, row := range r.rows {
		if row.name == name {
			for metric := range row.found {
				seen[metric] = true
			}
		}
	}
	order := []string{tpsMetric, loginsMetric, rateMetric, meanMetric, p50Metric, p99Metric, cpuMetric, growthMetric, peakMetric, idleMetric, perClient1Metric, perClientMetric, binaryMetric}
	return slices.DeleteFunc(order, func(m string) bool { return !seen[m] })
}

// csv is for machines: every value of every round.
func (r *results) csv(to io.Writer) error {
	w := csv.NewWriter(to)
	rows := [][]string{{"case", "target", "round", "metric", "value"}}
	for _, row := range r.rows {
		for _, metric := range slices.Sorted(maps.Keys(row.found)) {
			rows = append(rows, []string{row.name, row.target, strconv.Itoa(row.round + 1), metric,
				strconv.FormatFloat(row.found[metric], 'f', 4, 64)})
		}
	}
	return w.WriteAll(rows)
}

// readable has about three significant digits.
func readable(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func (s sample) String() string {
	var b strings.Builder
	for _, metric := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, " %s=%s", metric, readable(s[metric]))
	}
	return strings.TrimSpace(b.String())
}
