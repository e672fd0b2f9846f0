package eventloop

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestPostedFunctionsRunInTheOrderOfEachGoroutine(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	const goroutines, each = 16, 2000
	var ran [goroutines][]int
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if !l.Post(func() { ran[g] = append(ran[g], i) }) {
					t.Error("refused by a running loop")
				}
			}
		})
	}
	wg.Wait()
	on(t, l, func() {
		for g := range ran {
			if len(ran[g]) != each || !slices.IsSorted(ran[g]) {
				t.Errorf("goroutine %d: %d of %d ran, in order %v", g, len(ran[g]), each, slices.IsSorted(ran[g]))
			}
		}
	})
}

func TestABurstOfPostsDoesNotKeepItsMemory(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	on(t, l, func() {
		for range 10 * maxKept {
			l.Post(func() {})
		}
	})
	settled(t, l)
	on(t, l, func() {
		if cap(l.posted) > maxKept || cap(l.taken) > maxKept {
			t.Errorf("room for %d and %d functions is kept", cap(l.posted), cap(l.taken))
		}
	})
}

func TestPostWorksBeforeRunAndFromTheLoop(t *testing.T) {
	pgtest.CheckLeaks(t)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	l.Post(func() {
		order = append(order, "first")
		l.Post(func() {
			order = append(order, "from the loop")
			l.Stop()
		})
		order = append(order, "still first")
	})
	l.Post(func() { order = append(order, "second") })
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"first", "still first", "second", "from the loop"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
}

// Many goroutines post while the loop stops: what was accepted has run when Run returns, what was not never runs.
func TestWhatPostAcceptedRunsAlthoughTheLoopStops(t *testing.T) {
	pgtest.CheckLeaks(t)
	for range 30 {
		l, err := New()
		if err != nil {
			t.Fatal(err)
		}
		var accepted, ran atomic.Int64
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := 0; l.Post(func() { ran.Add(1) }); i++ {
					if accepted.Add(1); g == 0 && i == 100 {
						l.Stop()
					}
				}
			})
		}
		if err := l.Run(); err != nil {
			t.Fatal(err)
		}
		after := ran.Load()
		wg.Wait()
		if got, want := ran.Load(), accepted.Load(); got != want || after != want {
			t.Errorf("accepted %d, ran %d, of which %d before Run returned", want, got, after)
		}
		if l.Post(func() { t.Error("ran after the end") }) {
			t.Error("accepted after the end")
		}
		l.Stop()
	}
}

// A loop that ends closes its descriptors; their numbers belong to others then, and a late Post must not write to them.
func TestALatePostWritesToNobodysDescriptor(t *testing.T) {
	pgtest.CheckLeaks(t)
	for range 200 {
		l, err := New()
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for l.Post(func() {}) {
				}
			})
		}
		l.Stop()
		if err := l.Run(); err != nil {
			t.Fatal(err)
		}
		var pipe [2]int
		if err := unix.Pipe(pipe[:]); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		_ = unix.Close(pipe[1])
		if n, err := unix.Read(pipe[0], make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("a stranger's pipe got %d bytes, %v", n, err)
		}
		_ = unix.Close(pipe[0])
	}
}

func TestAParkedLoopIsWokenByPost(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	for range 100 {
		awaitParked(t)
		on(t, l, func() {})
	}
}

func TestAParkedLoopIsWokenByReadiness(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	heard := make(chan string, 1)
	_, p := connect(t, l, func(h *handler, _ Events) {
		if got, _ := readAll(&h.Conn, 10); got != "" {
			heard <- got
		}
	})
	for range 100 {
		awaitParked(t)
		p.say("x")
		await(t, heard)
	}
}

func TestALoopClosesWhatIsOpenWhenItEnds(t *testing.T) {
	pgtest.CheckLeaks(t)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var peers []*peer
	for range 10 {
		fd, other := socketpair(t)
		peers = append(peers, newPeer(t, other))
		h := &handler{ready: func(Events) {}}
		if !l.Post(func() {
			if err := l.Add(&h.Conn, fd, h); err != nil {
				t.Error(err)
			}
		}) {
			t.Fatal("refused before Run")
		}
	}
	l.Stop()
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if _, err := p.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the peer of a loop that has ended: %v", err)
		}
	}
	l.Close() // nothing more
}

// Close twice would close somebody else's descriptor.
func TestALoopThatNeverRanIsReleasedOnce(t *testing.T) {
	pgtest.CheckLeaks(t)
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	l.Post(func() { ran = true })
	l.Close()
	if !ran || l.Post(func() {}) {
		t.Errorf("what was accepted ran %v", ran)
	}
	var files []*os.File
	for range 8 {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	l.Close()
	for _, f := range files {
		if err := f.Close(); err != nil {
			t.Errorf("a file of somebody else: %v", err)
		}
	}
}

func TestTheScratchBufferIsOne(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	on(t, l, func() {
		if b := l.Scratch(); len(b) != ScratchSize || &b[0] != &l.Scratch()[0] {
			t.Errorf("scratch of %d bytes", len(b))
		}
	})
}

// echo answers every byte, through lent buffers, with a timer for each.
func echo(t testing.TB, l *Loop) (peerFD int) {
	t.Helper()
	fd, other := socketpair(t)
	t.Cleanup(func() { _ = syscall.Close(other) })
	var timer Timer
	late := func() { t.Error("an echo took an hour") }
	h := &handler{}
	h.ready = func(Events) {
		n, err := h.Read(l.Scratch())
		if err != nil {
			return
		}
		b := append(l.Buffers.Lend(n), l.Scratch()[:n]...)
		l.Set(&timer, l.Now()+time.Hour, late)
		if _, err := h.Write(b); err != nil {
			t.Error(err)
		}
		l.Buffers.Return(b)
	}
	on(t, l, func() {
		if err := l.Add(&h.Conn, fd, h); err != nil {
			t.Error(err)
		}
	})
	return other
}

func TestATurnAllocatesNothing(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	fd := echo(t, l)
	b := make([]byte, 100)
	ask := func() {
		if n, err := syscall.Write(fd, b); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		for got := 0; got < len(b); {
			n, err := syscall.Read(fd, b[got:])
			if n <= 0 || err != nil {
				t.Fatal(n, err)
			}
			got += n
		}
	}
	if n := testing.AllocsPerRun(1000, ask); n != 0 {
		t.Errorf("%v allocations for an echo", n)
	}
	done := make(chan struct{}, 1)
	post := func() { done <- struct{}{} }
	if n := testing.AllocsPerRun(1000, func() {
		l.Post(post)
		<-done
	}); n != 0 {
		t.Errorf("%v allocations for a posted function", n)
	}
	var timer Timer
	var again func()
	left := 0
	again = func() {
		if left--; left > 0 {
			l.Set(&timer, l.Now()+time.Microsecond, again)
			return
		}
		done <- struct{}{}
	}
	arm := func() {
		left = 20
		l.Set(&timer, l.Now()+time.Microsecond, again)
	}
	if n := testing.AllocsPerRun(100, func() {
		l.Post(arm)
		<-done
	}); n != 0 {
		t.Errorf("%v allocations for 20 timers", n)
	}
}

// One byte there and back through a loop that parks in between.
func BenchmarkPingPong(b *testing.B) {
	for name, size := range map[string]int{"1 byte": 1, "16 KiB": 16 << 10} {
		b.Run(name, func(b *testing.B) {
			l := running(b)
			fd := echo(b, l)
			buf := bytes.Repeat([]byte{1}, size)
			b.SetBytes(int64(2 * size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := syscall.Write(fd, buf); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < size; {
					n, err := syscall.Read(fd, buf[got:])
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
		})
	}
}

func BenchmarkPost(b *testing.B) {
	l := running(b)
	fn := func() {}
	b.ReportAllocs()
	for b.Loop() {
		l.Post(fn)
	}
}
