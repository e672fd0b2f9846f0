package eventloop

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// The heap against a list that is sorted each time.
func TestTimersFireInTheOrderOfTheirTimes(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var (
			l      Loop
			timers [40]Timer
			now    time.Duration
			fired  []int
			want   = map[int]time.Duration{}
		)
		for range 400 {
			i := rng.IntN(len(timers))
			switch rng.IntN(4) {
			case 0, 1:
				when := now + time.Duration(rng.IntN(100)-10)
				l.Set(&timers[i], when, func() { fired = append(fired, i) })
				want[i] = when
			case 2:
				l.Unset(&timers[i])
				delete(want, i)
			case 3:
				now += time.Duration(rng.IntN(30))
				var due []int
				for i, when := range want {
					if when <= now {
						due = append(due, i)
					}
				}
				fired = nil
				l.timers.run(now)
				// Those of the same time fire in any order.
				for k := 1; k < len(fired); k++ {
					if want[fired[k-1]] > want[fired[k]] {
						t.Fatalf("seed %d: timers of %v and %v fired in that order", seed, want[fired[k-1]], want[fired[k]])
					}
				}
				slices.Sort(due)
				slices.Sort(fired)
				if !slices.Equal(fired, due) {
					t.Fatalf("seed %d: fired %v, due were %v", seed, fired, due)
				}
				for _, i := range due {
					delete(want, i)
				}
			}
			first, some := l.timers.next()
			for i := range timers {
				when, armed := want[i]
				if timers[i].Armed() != armed || armed && timers[i].When() != when {
					t.Fatalf("seed %d: timer %d is armed %v for %v, want %v, %v", seed, i, timers[i].Armed(), timers[i].When(), armed, when)
				}
				if armed && when < first {
					t.Fatalf("seed %d: the next is said to be at %v, there is one at %v", seed, first, when)
				}
			}
			if some != (len(want) > 0) {
				t.Fatalf("seed %d: there is a next %v, armed are %d", seed, some, len(want))
			}
		}
	}
}

func TestTimersWakeAParkedLoop(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	fired := make(chan time.Duration, 1)
	var timer Timer
	for _, after := range []time.Duration{0, time.Nanosecond, time.Millisecond, 20 * time.Millisecond} {
		var when time.Duration
		on(t, l, func() {
			when = l.Clock() + after
			l.Set(&timer, when, func() { fired <- l.Now() })
		})
		if got := await(t, fired); got < when {
			t.Errorf("fired at %v, set for %v", got, when)
		}
	}
	// The timer that was armed when the loop parked is taken back, or replaced by a later or an earlier one.
	var other Timer
	on(t, l, func() { l.Set(&timer, l.Now()+time.Hour, func() { t.Error("fired an hour early") }) })
	awaitParked(t)
	on(t, l, func() { l.Set(&other, l.Now()+2*time.Millisecond, func() { fired <- l.Now() }) })
	await(t, fired)
	awaitParked(t)
	on(t, l, func() {
		l.Set(&timer, l.Now()+time.Millisecond, func() { t.Error("fired after Unset") })
		l.Unset(&timer)
		l.Unset(&timer)
		l.Set(&other, l.Now()+10*time.Millisecond, func() { fired <- l.Now() })
	})
	await(t, fired)
	if timer.Armed() || other.Armed() {
		t.Error("armed after all")
	}
}

// What the runtime was told about a timer that has fired must not keep the loop awake.
func TestALoopParksAfterItsLastTimer(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var timer Timer
	fired := make(chan struct{}, 1)
	for range 3 {
		on(t, l, func() { l.Set(&timer, l.Now()+time.Millisecond, func() { fired <- struct{}{} }) })
		await(t, fired)
		awaitParked(t)
		var before uint64
		on(t, l, func() { before = l.turns })
		awaitParked(t)
		on(t, l, func() {
			if turns := l.turns - before; turns > 10 {
				t.Errorf("%d turns with nothing to do", turns)
			}
		})
	}
}

// An earlier deadline than needed is left armed: it must cost a turn and not a wrong call, nor keep the loop from parking.
func TestALaterTimerDoesNotFireEarly(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var timer Timer
	fired := make(chan time.Duration, 1)
	for moved := 0; moved < 3; {
		var when time.Duration
		on(t, l, func() { l.Set(&timer, l.Clock()+10*time.Millisecond, func() { fired <- l.Now() }) })
		awaitParked(t)
		on(t, l, func() {
			if timer.Armed() { // else this machine is slow, and it has fired
				moved++
				when = timer.When() + 5*time.Millisecond
				l.Set(&timer, when, func() { fired <- l.Now() })
			}
		})
		if got := await(t, fired); got < when {
			t.Errorf("fired at %v, set for %v", got, when)
		}
	}
}

func TestATimerCanBeChangedFromTimers(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var (
		a, b, c Timer
		order   []string
		done    = make(chan struct{})
	)
	on(t, l, func() {
		l.Set(&a, l.Now()-3, func() {
			order = append(order, "a")
			if a.Armed() {
				t.Error("armed while it fires")
			}
			l.Unset(&a) // not armed any more: nothing
			l.Unset(&b) // due in this very turn
			l.Set(&c, l.Now()+time.Millisecond, func() {
				order = append(order, "c")
				l.Unset(&c)
				close(done)
			})
		})
		l.Set(&b, l.Now()-2, func() { order = append(order, "b") })
		l.Set(&c, l.Now()-1, func() { order = append(order, "early c") })
	})
	await(t, done)
	on(t, l, func() {
		if !slices.Equal(order, []string{"a", "c"}) {
			t.Errorf("fired %v", order)
		}
	})
}

// A timer that sets itself anew for now, or for a time long past, must not keep others or the loop from going on.
func TestAnEagerTimerLetsOthersFire(t *testing.T) {
	pgtest.CheckLeaks(t)
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Nanosecond} {
		l := running(t)
		var (
			eager, other Timer
			times        int
			turn         uint64
			inTurn       int // most firings in one turn
			now          int
			again        func()
			ended        bool
			done         = make(chan struct{})
		)
		read := make(chan string, 1)
		_, p := connect(t, l, func(h *handler, _ Events) {
			if got, _ := readAll(&h.Conn, 10); got != "" {
				read <- got
			}
		})
		again = func() {
			if turn != l.turns {
				turn, now = l.turns, 0
			}
			now++
			inTurn = max(inTurn, now)
			if times++; !ended {
				l.Set(&eager, l.Now()+ahead, again)
			}
		}
		on(t, l, func() {
			l.Set(&eager, 0, again)
			l.Set(&other, l.Now(), func() { close(done) })
		})
		await(t, done)
		// Bytes are read meanwhile.
		p.say("hello")
		if got := await(t, read); got != "hello" {
			t.Errorf("read %q", got)
		}
		on(t, l, func() {
			ended = true
			l.Unset(&eager)
			if times < 2 {
				t.Errorf("%v ahead: fired %d times", ahead, times)
			}
			if inTurn > 1 {
				t.Errorf("%v ahead: %d times in one turn", ahead, inTurn)
			}
		})
	}
}

// There is always something to do, and timers fire nevertheless.
func TestTimersFireWhileTheLoopIsBusy(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	done := make(chan struct{})
	ended := false
	h, _ := connect(t, l, func(h *handler, _ Events) {
		if !ended {
			l.Again(&h.Conn)
		}
	})
	var timer Timer
	on(t, l, func() {
		l.Again(&h.Conn)
		l.Set(&timer, l.Now()+5*time.Millisecond, func() {
			ended = true
			close(done)
		})
	})
	await(t, done)
}

// The clock stands still during a turn, and only then.
func TestNowIsReadOncePerTurn(t *testing.T) {
	pgtest.CheckLeaks(t)
	l := running(t)
	var first time.Duration
	on(t, l, func() {
		first = l.Now()
		for l.Clock() == first {
			runtime.Gosched()
		}
		if l.Now() != first {
			t.Error("the clock moved within a turn")
		}
	})
	on(t, l, func() {
		if l.Now() <= first {
			t.Error("the clock did not move between turns")
		}
	})
}
