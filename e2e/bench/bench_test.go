package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedianOfNothingIsNotANumber(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{5}, 5}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.of, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

func TestLatenciesComeFromTheThirdColumn(t *testing.T) {
	got, err := appendLatencies(nil, []byte("0 1 1500 0 1700000000 5\n1 1 250 0 1700000000 9 12\n"))
	if err != nil || !slices.Equal(got, latencies{1500 * time.Microsecond, 250 * time.Microsecond}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"0 1\n", "0 1 failed 0 1 2\n"} {
		if _, err := appendLatencies(nil, []byte(bad)); err == nil {
			t.Errorf("line %q was taken", bad)
		}
	}
}

// threeRounds has a sidecar at 90, 100, 110 and a PgBouncer at 100, 100, 100, whose second run differs by up to 5 %.
func threeRounds() *results {
	r := &results{}
	for i, v := range [][3]float64{{90, 100, 95}, {100, 100, 100}, {110, 100, 105}} {
		for j, target := range []string{sidecarTarget, pgbouncerTarget, againTarget} {
			r.add("simple-16", target, i, sample{cpuMetric: v[j], tpsMetric: v[j]})
		}
	}
	return r
}

func TestSpreadIsPgBouncerAgainstItself(t *testing.T) {
	if got, want := threeRounds().spread("simple-16", cpuMetric), (spread{1, 0.95, 1.05}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := (&results{}).spread("simple-16", cpuMetric); got.String() != "-" {
		t.Errorf("the spread of nothing prints %s", got)
	}
}

func TestVerdictForgivesOnlyTheNoise(t *testing.T) {
	noise := spread{1, 0.95, 1.05}
	for _, c := range []struct {
		name, metric       string
		sidecar, pgbouncer float64
		noise              spread
		want               string
	}{
		{"simple-16", cpuMetric, 99, 100, noise, "at most 1: met"},
		{"simple-16", cpuMetric, 104, 100, noise, "at most 1: met within the noise"},
		{"simple-16", cpuMetric, 106, 100, noise, "at most 1: MISSED"},
		{"simple-16", tpsMetric, 100, 100, noise, "at least 1: met"},
		{"simple-16", tpsMetric, 96, 100, noise, "at least 1: met within the noise"},
		{"simple-16", tpsMetric, 94, 100, noise, "at least 1: MISSED"},
		{"simple-64", cpuMetric, 93, 100, spread{1, 1, 1}, "at most 0.92: MISSED"},
		{largeCase, growthMetric, 9000, 1, spread{100, 1, 100}, "at most 8192: MISSED"},
		{"simple-16", cpuMetric, 99, math.NaN(), noise, "at most 1: not measured"},
		{"simple-16", cpuMetric, math.NaN(), 1, noise, ""},
		{"simple-1", cpuMetric, 99, 100, noise, ""},
	} {
		if got := verdict(c.name, c.metric, c.sidecar, c.pgbouncer, c.noise); got != c.want {
			t.Errorf("%s %s %g/%g: %q, want %q", c.name, c.metric, c.sidecar, c.pgbouncer, got, c.want)
		}
	}
}

func TestEveryBarNamesACaseThatExists(t *testing.T) {
	for _, b := range bars {
		for _, name := range b.cases {
			if !slices.Contains(caseNames(), name) {
				t.Errorf("the bar for %s names the case %s, which does not exist", b.metric, name)
			}
		}
	}
}

func TestTableCountsBars(t *testing.T) {
	table := threeRounds().table(settings{rounds: 3, duration: time.Second, cases: []string{"simple-16"}})
	for _, want := range []string{"| simple-16 | cpu_us | - | 100 | 100 | 1.00 | 1.00 (0.95 to 1.05) | at most 1: met |", "bars: 2 met, 0 missed"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}

func TestCSVHasEveryValue(t *testing.T) {
	var out strings.Builder
	if err := threeRounds().csv(&out); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 1+3*3*2 || !strings.Contains(out.String(), "simple-16,sidecar,3,cpu_us,110.0000\n") {
		t.Errorf("%d lines:\n%s", lines, out.String())
	}
}

func TestChartsAreWellFormedWhateverWasMeasured(t *testing.T) {
	for name, r := range map[string]*results{"nothing": {}, "one case": threeRounds()} {
		svg := charts(r, machine{cpu: "a <b> & c"})
		decoder := xml.NewDecoder(bytes.NewReader(svg))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if !bytes.Equal(svg, charts(r, machine{cpu: "a <b> & c"})) {
			t.Errorf("%s: the same results give different charts", name)
		}
	}
}

func TestFlagsChooseCases(t *testing.T) {
	t.Setenv("ROUNDS", "7")
	s, err := parse([]string{"-cases", "simple-16,ext", "-seconds", "2", "-sidecar", "no-such-binary"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"simple-16", "ext-1", "ext-16", "ext-64", "ext-200"}; !slices.Equal(s.cases, want) {
		t.Errorf("cases %v, want %v", s.cases, want)
	}
	if s.rounds != 7 || s.duration != 2*time.Second || s.out != "" || slices.Contains(s.targets, sidecarTarget) {
		t.Errorf("got %+v", s)
	}
	for _, bad := range [][]string{{"-cases", "simple-17"}, {"-targets", "odyssey"}, {"-rounds", "0"}, {"-seconds", "0.5"}, {"extra"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}
