package proxy

import (
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestATrackedParameterThatTheServerDoesNotReportIsNobodys(t *testing.T) {
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 1 })
	set.Tracked = []string{"IntervalStyle", "work_mem"}
	p := startProxy(t, set)
	normal := p.call()
	want := normal.must("show work_mem")
	for range 2 {
		odd := p.call("work_mem", "77MB")
		if _, told := odd.params["work_mem"]; told {
			t.Error("the client is told that it has it")
		}
		odd.must("select 1")
		if got := normal.must("show work_mem"); got != want {
			t.Errorf("another client has the value %s", got)
		}
	}
	if n := strings.Count(p.logs.String(), "tracked but not reported"); n != 1 {
		t.Errorf("logged %d times, want once", n)
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
