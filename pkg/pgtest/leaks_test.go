package pgtest

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// recorder is a test whose outcome we look at.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()          {}
func (r *recorder) Failed() bool     { return len(r.errors) > 0 }
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) finish() string {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return strings.Join(r.errors, "\n")
}

func TestALeakedGoroutineIsReportedWithItsStack(t *testing.T) {
	r := &recorder{TB: t}
	checkLeaks(r, 100*time.Millisecond)
	end := make(chan struct{})
	defer close(end)
	go func() { <-end }()
	if got := r.finish(); !strings.Contains(got, "TestALeakedGoroutineIsReported") || strings.Count(got, "leaked: ") != 1 {
		t.Errorf("got %q", got)
	}
}

func TestLeakedDescriptorsAreReported(t *testing.T) {
	r := &recorder{TB: t}
	checkLeaks(r, 100*time.Millisecond)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := r.finish()
	if !strings.Contains(got, "is socket:[") || !strings.Contains(got, "is /dev/null") || strings.Count(got, "leaked: ") != 2 {
		t.Errorf("got %q", got)
	}
}

func TestWhatEndsSoonAfterTheTestIsNoLeak(t *testing.T) {
	r := &recorder{TB: t}
	CheckLeaks(r)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { f.Close() })
	go func() { <-time.After(50 * time.Millisecond) }()
	if got := r.finish(); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestServersAreNoLeaks(t *testing.T) {
	r := &recorder{TB: t}
	CheckLeaks(r)
	s := Start(t, Options{})
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.finish(); got != "" {
		t.Errorf("got %q", got)
	}
}
