package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestJudgeNamesEveryBrokenPromise(t *testing.T) {
	s := settings{budget: 50}
	straight := phase{refused: 10}
	good := phase{peakConnections: appConnections, peakBackends: 50, transactions: 1}
	if err := judge(s, straight, good, 0); err != nil {
		t.Errorf("all promises kept, but: %v", err)
	}
	for want, c := range map[string]struct {
		straight, pooled phase
		lost             int
	}{
		"nobody was refused":         {phase{}, good, 0},
		"there were 3 errors":        {straight, phase{peakConnections: appConnections, peakBackends: 50, transactions: 1, refused: 1, failed: 2}, 0},
		"no transaction":             {straight, phase{peakConnections: appConnections, peakBackends: 50}, 0},
		"held 575 application":       {straight, phase{peakConnections: appConnections - 1, peakBackends: 50, transactions: 1}, 0},
		"had 51 backends":            {straight, phase{peakConnections: appConnections, peakBackends: 51, transactions: 1}, 0},
		"had 0 backends":             {straight, phase{peakConnections: appConnections, transactions: 1}, 0},
		"2 committed writes fewer":   {straight, good, 2},
		"-1 committed writes fewer":  {straight, good, -1},
		"had 51 backends, allowed a": {straight, phase{peakBackends: 51}, 7},
	} {
		if err := judge(s, c.straight, c.pooled, c.lost); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestTallyTellsARefusalFromOtherErrors(t *testing.T) {
	a, b := &tally{}, &tally{}
	a.error(&pgconn.PgError{Severity: "FATAL", Code: tooManyClients, Message: "sorry, too many clients already"})
	a.error(errors.New("broken pipe"))
	b.error(errors.New("another"))
	a.done(2*time.Millisecond, true, true)
	b.done(1*time.Millisecond, false, true)
	b.done(9*time.Millisecond, false, true)
	b.done(time.Hour, false, false) // too early to count

	p := sum("x", []*tally{a, b})
	want := phase{title: "x", transactions: 4, writes: 1, refused: 1, failed: 2, p50: 2 * time.Millisecond, p99: 9 * time.Millisecond,
		firstRefusal: "FATAL: sorry, too many clients already (SQLSTATE 53300)", firstFailure: "broken pipe"}
	if p != want {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestPauseEndsWithTheLoad(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	pause(ctx, time.Hour, 2*time.Hour)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

func TestTableHasARowForEachServiceAndTheirSum(t *testing.T) {
	now := make([]counts, services)
	rates := make([]float64, services)
	for i := range now {
		now[i] = counts{connected: 48, transactions: 10, refused: 1, failed: 2}
		rates[i] = 5
	}
	lines := strings.Split(strings.TrimSuffix(table(now, rates), "\n"), "\n")
	if len(lines) != services+2 {
		t.Fatalf("%d lines", len(lines))
	}
	if got, want := strings.Fields(lines[len(lines)-1]), []string{"all", "576", "of", "576", "60", "120", "12", "24"}; !slices.Equal(got, want) {
		t.Errorf("the last line has %q, want %q", got, want)
	}
}

func TestGaugeStaysInItsFrame(t *testing.T) {
	for n, want := range map[int]string{
		0:   "backends [........................................] 0 of 200",
		50:  "backends [##########..............................] 50 of 200",
		300: "backends [########################################] 300 of 200",
	} {
		if got := gauge(n, 200); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
