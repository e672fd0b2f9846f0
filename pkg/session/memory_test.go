package session

import (
	"runtime"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// exchange has messages pass: those to the server, then those from it.
func exchange(l *Link, to, from string) {
	for _, typ := range []byte(to) {
		if err := l.Sent(typ); err != nil {
			panic(err)
		}
	}
	for _, typ := range []byte(from) {
		if _, err := l.Received(typ, pgwire.StatusIdle); err != nil {
			panic(err)
		}
	}
}

func TestACycleAllocatesNothing(t *testing.T) {
	var l Link
	l.Reset()
	for name, cycle := range map[string][2]string{
		"simple query":          {"Q", "TDDDCZ"},
		"extended query":        {"PBDES", "12tTDDDCZ"},
		"query that fails":      {"Q", "TDEZ"},
		"batch that fails":      {"PBDES", "1EZ"},
		"copy in":               {"Q", "GCZ"},
		"two batches in flight": {"PBDESBES", "12TDDDCZ2DCZ"},
	} {
		if n := testing.AllocsPerRun(1000, func() {
			exchange(&l, cycle[0], cycle[1])
			if !l.Idle() {
				t.Fatal("not idle after a cycle")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// A client that always has something in flight must not make the queue of answers grow or move for every message.
func TestASteadyPipelineAllocatesNothing(t *testing.T) {
	for _, depth := range []int{1, 7, 15, 16, 17, 100, 1000, 1025, 5000} {
		var l Link
		l.Reset()
		for range depth {
			exchange(&l, "Q", "")
		}
		exchange(&l, "QQ", "CZCZ") // the storage has its size now
		for range depth {
			exchange(&l, "Q", "CZ")
		}
		if n := testing.AllocsPerRun(3*depth, func() { exchange(&l, "Q", "CZ") }); n != 0 {
			t.Errorf("%d in flight: %v allocations for each more", depth, n)
		}
		if cap(l.queue) > max(16, 4*depth) {
			t.Errorf("%d in flight: there is room for %d", depth, cap(l.queue))
		}
		if got := l.Outstanding(); got != depth {
			t.Errorf("%d in flight are counted as %d", depth, got)
		}
	}
}

func TestALongPipelineDoesNotKeepItsMemory(t *testing.T) {
	var links [32]Link
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const messages = 100_000
	before := heap()
	for i := range links {
		l := &links[i]
		l.Reset()
		for range messages {
			exchange(l, "S", "")
		}
	}
	if full := heap() - before; full < messages*int64(len(links)) {
		t.Fatalf("%d messages in flight need %d bytes: this measures nothing", messages*len(links), full)
	}
	for i := range links {
		for range messages {
			exchange(&links[i], "", "Z")
		}
		if !links[i].Idle() {
			t.Fatal("not idle")
		}
	}
	if kept := heap() - before; kept > messages {
		t.Errorf("after %d answered pipelines of %d messages %d bytes are kept", len(links), messages, kept)
	}
	runtime.KeepAlive(&links)
}

// A pipeline of any length costs the same for each message.
func BenchmarkLink(b *testing.B) {
	for name, cycle := range map[string][2]string{"simple": {"Q", "TDCZ"}, "extended": {"PBDES", "12TDCZ"}} {
		for _, depth := range []struct {
			name string
			n    int
		}{{"alone", 0}, {"behind 100", 100}, {"behind 100000", 100_000}} {
			b.Run(name+"/"+depth.name, func(b *testing.B) {
				var l Link
				l.Reset()
				for range depth.n {
					exchange(&l, cycle[0], "")
				}
				b.ReportAllocs()
				for b.Loop() {
					exchange(&l, cycle[0], cycle[1])
				}
			})
		}
	}
}
