package proxy

import (
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestATrackedParameterThatTheServerDoesNotReportIsItsClientsAlone(t *testing.T) {
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 1 })
	set.Tracked = []string{"IntervalStyle", "work_mem"}
	p := startProxy(t, set)
	normal, odd := p.call(), p.call("work_mem", "77MB")
	want := normal.must("show work_mem")
	for range 3 {
		if got := odd.must("show work_mem"); got != "77MB" {
			t.Errorf("the client that asked for it has %s", got)
		}
		if got := normal.must("show work_mem"); got != want {
			t.Errorf("another client has %s", got)
		}
	}
}

func TestTrackedParametersMayBeSpeltInAnyCase(t *testing.T) {
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 1 })
	set.Tracked = []string{"intervalstyle"}
	p := startProxy(t, set)
	r := p.raw(t).send(hello("user", "app", "INTERVALSTYLE", "iso_8601"))
	var told []string
	for {
		m, err := r.hear()
		if err != nil {
			t.Fatal(err)
		}
		if m.kind == 'Z' {
			break
		}
		if m.kind == 'S' && strings.HasPrefix(strings.ToLower(string(m.body)), "intervalstyle\x00") {
			told = append(told, string(m.body))
		}
	}
	if len(told) != 1 || told[0] != "IntervalStyle\x00iso_8601\x00" {
		t.Errorf("the client is told %q", told)
	}
	if got := r.ask("show intervalstyle"); got != "iso_8601" {
		t.Errorf("IntervalStyle is %q", got)
	}
	if got := p.call().must("show intervalstyle"); got != "postgres" {
		t.Errorf("another client's IntervalStyle is %q", got)
	}
}
