package eventloop

import "time"

// Timer calls a function on the loop at a time. The zero value is unset; it is meant to be embedded and reused.
type Timer struct {
	when time.Duration
	fn   func()
	pos  int // 1-based position in the heap; 0 is unset
}

// Set (re)arms t for the loop's time when. Timers fire in the order of their times, at the end of a turn. One that is set
// by a timer's function fires in the next turn at the earliest, so that no timer can keep others from firing.
func (l *Loop) Set(t *Timer, when time.Duration, fn func()) {
	t.fn = fn
	if l.firing {
		when = max(when, l.now+1)
	}
	if t.pos != 0 {
		t.when = when
		l.timers.fix(t.pos - 1)
		return
	}
	t.when = when
	l.timers.push(t)
}

// Unset disarms t. An unset timer is left alone.
func (l *Loop) Unset(t *Timer) {
	if t.pos != 0 {
		l.timers.remove(t.pos - 1)
	}
}

// Armed reports whether t will fire.
func (t *Timer) Armed() bool { return t.pos != 0 }

// When is the time an armed timer fires at.
func (t *Timer) When() time.Duration { return t.when }

// timerHeap is a binary heap whose members know their place, so that a timer is moved without a search.
type timerHeap []*Timer

func (h timerHeap) next() (time.Duration, bool) {
	if len(h) == 0 {
		return 0, false
	}
	return h[0].when, true
}

func (h timerHeap) due(now time.Duration) bool { return len(h) > 0 && h[0].when <= now }

// run fires what is due at now.
func (h *timerHeap) run(now time.Duration) {
	for h.due(now) {
		t := (*h)[0]
		h.remove(0)
		t.fn()
	}
}

func (h *timerHeap) push(t *Timer) {
	*h = append(*h, t)
	t.pos = len(*h)
	h.up(len(*h) - 1)
}

func (h *timerHeap) remove(i int) {
	s := *h
	last := len(s) - 1
	s[i].pos = 0
	if i != last {
		s[i] = s[last]
		s[i].pos = i + 1
	}
	s[last] = nil
	*h = s[:last]
	if i != last {
		h.fix(i)
	}
}

func (h *timerHeap) fix(i int) {
	h.up(i)
	h.down(i)
}

func (h timerHeap) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].when <= h[i].when {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h timerHeap) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if h[c].when < h[least].when {
				least = c
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h timerHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i+1, j+1
}
