package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// screen is the live table: redrawn in place on a terminal, else a line every few seconds.
type screen struct {
	title    string
	watch    *watch
	terminal bool
	lines    int           // drawn last time, to go back over
	next     time.Duration // when to draw again
	before   []counts      // at the last drawing, for rates
	at       time.Duration // of the last drawing
}

func newScreen(title string, w *watch) *screen {
	info, err := os.Stdout.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	fmt.Printf("== %s\n", title)
	if !terminal {
		fmt.Printf("%6s %12s %9s %8s %9s %7s\n", "time", "connected", "backends", "tx/s", "refused", "errors")
	}
	return &screen{title: title, watch: w, terminal: terminal, before: make([]counts, services)}
}

func (s *screen) show(elapsed time.Duration, tallies []*tally) {
	if elapsed < s.next {
		return
	}
	if s.terminal {
		s.next = elapsed + 500*time.Millisecond
		s.draw(elapsed, tallies)
	} else {
		s.next = elapsed.Truncate(time.Second) + 2*time.Second
		s.line(elapsed, tallies)
	}
}

// close leaves the last state standing.
func (s *screen) close(elapsed time.Duration, tallies []*tally) {
	if s.terminal {
		s.draw(elapsed, tallies)
	} else {
		s.line(elapsed, tallies)
	}
	fmt.Println()
}

func (s *screen) draw(elapsed time.Duration, tallies []*tally) {
	now, rates := s.advance(elapsed, tallies)
	var b strings.Builder
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.lines)
	}
	body := table(now, rates)
	fmt.Fprintf(&b, "%5.1f s   %s\n%s", elapsed.Seconds(), gauge(int(s.watch.backends.Load()), maxConnections), body)
	s.lines = 1 + strings.Count(body, "\n")
	fmt.Print(b.String())
}

func (s *screen) line(elapsed time.Duration, tallies []*tally) {
	now, rates := s.advance(elapsed, tallies)
	total, rate := totals(now, rates)
	fmt.Printf("%5.1fs %6d of %d %9d %8.0f %9d %7d\n", elapsed.Seconds(), total.connected, appConnections, s.watch.backends.Load(), rate, total.refused, total.failed)
}

// advance takes the present counts and computes transactions per second since the last time.
func (s *screen) advance(elapsed time.Duration, tallies []*tally) (now []counts, rates []float64) {
	seconds := max((elapsed - s.at).Seconds(), 0.001)
	for i, t := range tallies {
		c := t.now()
		now = append(now, c)
		rates = append(rates, float64(c.transactions-s.before[i].transactions)/seconds)
	}
	s.before, s.at = now, elapsed
	return now, rates
}

func totals(now []counts, rates []float64) (counts, float64) {
	var all counts
	var rate float64
	for i, c := range now {
		all.connected += c.connected
		all.transactions += c.transactions
		all.refused += c.refused
		all.failed += c.failed
		rate += rates[i]
	}
	return all, rate
}

func table(now []counts, rates []float64) string {
	var b strings.Builder
	row := func(name string, c counts, of int, rate float64) {
		fmt.Fprintf(&b, "%-11s %5d of %-4d %8.0f %13d %9d %7d\n", name, c.connected, of, rate, c.transactions, c.refused, c.failed)
	}
	fmt.Fprintf(&b, "%-11s %13s %8s %13s %9s %7s\n", "service", "connected", "tx/s", "transactions", "refused", "errors")
	for i, c := range now {
		row(fmt.Sprintf("service-%02d", i+1), c, replicas*poolPerReplica, rates[i])
	}
	all, rate := totals(now, rates)
	row("all", all, appConnections, rate)
	return b.String()
}

// gauge draws how full PostgreSQL is.
func gauge(n, of int) string {
	const width = 40
	full := min(n*width/of, width)
	return fmt.Sprintf("backends [%s%s] %d of %d", strings.Repeat("#", full), strings.Repeat(".", width-full), n, of)
}

// report compares both loads.
func report(straight, pooled phase) string {
	var b strings.Builder
	row := func(what, a, c string) { fmt.Fprintf(&b, "%-34s %16s %16s\n", what, a, c) }
	number := func(what string, a, c int) { row(what, fmt.Sprint(a), fmt.Sprint(c)) }
	row("", "PostgreSQL", "sidecar")
	number("application connections wanted", appConnections, appConnections)
	number("application connections at once", straight.peakConnections, pooled.peakConnections)
	number("peak backends", straight.peakBackends, pooled.peakBackends)
	number("refused, too many clients", straight.refused, pooled.refused)
	number("other errors", straight.failed, pooled.failed)
	number("transactions", straight.transactions, pooled.transactions)
	row("transactions per second", fmt.Sprintf("%.0f", straight.rate()), fmt.Sprintf("%.0f", pooled.rate()))
	row("p50 latency, once warm", straight.p50.Round(10*time.Microsecond).String(), pooled.p50.Round(10*time.Microsecond).String())
	row("p99 latency, once warm", straight.p99.Round(10*time.Microsecond).String(), pooled.p99.Round(10*time.Microsecond).String())
	for _, p := range []phase{straight, pooled} {
		for _, text := range []string{p.firstRefusal, p.firstFailure} {
			if text != "" {
				fmt.Fprintf(&b, "%s, for example: %s\n", p.title, strings.ReplaceAll(text, "\n", " "))
			}
		}
	}
	b.WriteString("\n")
	return b.String()
}

func (p phase) rate() float64 { return float64(p.transactions) / p.took.Seconds() }
