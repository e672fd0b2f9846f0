package config

import (
	"reflect"
	"testing"
	"time"
)

func TestIntegersAreReadAsStrtolReadsThem(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "7": 7, "-7": -7, "+7": 7, "010": 8, "0x1F": 31, "0X1f": 31, "-0x10": -16, "00": 0, "-010": -8,
	} {
		if got, ok := parseInt(text); !ok || got != want {
			t.Errorf("%q is %d, %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "-", "+", "0x", "08", "1k", "1.0", "1_0", " 1", "0x-1", "0-1", "--1", "0b1", "99999999999999999999"} {
		if got, ok := parseInt(text); ok {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestTimesAreSecondsOrDurations(t *testing.T) {
	for _, c := range []struct {
		text          string
		l             limits
		want          time.Duration
		native, inINI bool
	}{
		{"15", limits{}, 15 * time.Second, true, true},
		{"0", limits{}, 0, true, true},
		{"0.5", limits{}, 500 * time.Millisecond, true, true},
		{"1e3", limits{}, 1000 * time.Second, true, true},
		{"500ms", limits{}, 500 * time.Millisecond, true, false},
		{"1h30m", limits{}, 90 * time.Minute, true, false},
		{"1.5", seconds, 0, false, false},
		{"1.5s", seconds, 0, false, false},
		{"2m", seconds, 2 * time.Minute, true, false},
		{"1500", millis, 1500 * time.Millisecond, true, true},
		{"1.5s", millis, 1500 * time.Millisecond, true, false},
		{"2147483647", limits{}, maxTime, true, true},
		{"2147483648", limits{}, 0, false, false},
		{"600000h", limits{}, 0, false, false},
		{"-1", limits{}, 0, false, false},
		{"-1s", limits{}, 0, false, false},
		{"", limits{}, 0, false, false},
		{"nan", limits{}, 0, false, false},
		{"inf", limits{}, 0, false, false},
		{"1e300", limits{}, 0, false, false},
		{"1 s", limits{}, 0, false, false},
	} {
		for d, ok := range map[dialect]bool{dialectYAML: c.native, dialectINI: c.inINI} {
			got, gotOK := parseTime(c.text, d.of(c.l))
			if gotOK != ok || ok && got != c.want {
				t.Errorf("%q in dialect %d: %v %v, want %v %v", c.text, d, got, gotOK, c.want, ok)
			}
		}
	}
}

// What Render shows for a value can be written in a file and means the same.
func TestShownValuesReadBack(t *testing.T) {
	for _, d := range []time.Duration{0, time.Microsecond, 1500 * time.Millisecond, time.Second, 90 * time.Second, time.Hour, 26*time.Hour + time.Minute, maxTime} {
		if got, ok := parseTime(formatTime(d), limits{durable: true}); !ok || got != d {
			t.Errorf("%v is shown as %s, which reads as %v, %v", d, formatTime(d), got, ok)
		}
	}
	for _, s := range globals {
		before, after := new(Config), new(Config)
		if text := s.initial(dialectYAML); text != "" {
			assign(s.value(before), text, dialectYAML.of(s.limits))
			if allowed := assign(s.value(after), format(s.value(before)), dialectYAML.of(s.limits)); allowed != "" {
				t.Errorf("%s is shown as %q; allowed: %s", s.key, format(s.value(before)), allowed)
			}
			if !reflect.DeepEqual(before, after) {
				t.Errorf("%s changes when what is shown is read back", s.key)
			}
		}
	}
}

func TestSuggestionsAreNearOrNone(t *testing.T) {
	for name, want := range map[string]string{
		"pool_mod": "pool_mode", "pool-mode": "pool_mode", "POOLMODE": "pool_mode", "max_client_con": "max_client_conn",
		"listen": "", "zebra": "", "": "", "default_pool_sizes": "default_pool_size", "log_conections": "log_connections",
	} {
		if got := nearest(name, keys(globals)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestEditDistanceIsAMetricOnExamples(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0}, {"abc", "axc", 1}, {"abc", "bc", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q is %d, want %d", c.a, c.b, got, c.want)
		}
		if editDistance(c.a, c.b) != editDistance(c.b, c.a) {
			t.Errorf("%q and %q are not the same both ways", c.a, c.b)
		}
	}
}
