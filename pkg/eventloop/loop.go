// Package eventloop runs many sockets on one goroutine.
//
// A Loop owns an epoll instance, timers, lent buffers and a queue of functions posted by other goroutines. Everything it
// calls runs on the goroutine of Run, so what belongs to a loop needs no lock.
//
// It refuses to know what the bytes mean: no frames, no protocol, no pool. It starts no goroutine and, on Linux, never
// blocks in a system call: when nothing is ready the goroutine parks in the Go runtime's own poller, which costs no thread
// and no hand-off of the processor (epoll descriptors are pollable themselves). Elsewhere, on machines of developers, it
// blocks in kqueue.
package eventloop

import (
	"sync"
	"time"
)

// Events says why a handler is called.
type Events uint8

const (
	// Readable: a read will give bytes, end of file or an error.
	Readable Events = 1 << iota
	// Writable: only reported while WantWrite is on.
	Writable
	// HangUp: the peer closed its sending side, or the socket failed. Reading to the end tells which.
	HangUp
)

// Handler is told that its Conn is ready. Readiness is edge-triggered: the handler reads until a short read or
// ErrWouldBlock, or asks to be called again with Loop.Again.
type Handler interface {
	Ready(ev Events)
}

// Loop is one event loop. Only Post and Stop may be called from goroutines other than the one in Run.
type Loop struct {
	poll    poller
	conns   []*Conn // by descriptor
	gen     uint32
	again   []*Conn
	running []*Conn // the list being worked off while again fills up
	turns   uint64

	start  time.Time
	now    time.Duration
	timers timerHeap
	firing bool // timers run

	Buffers Buffers
	scratch []byte

	// mu guards what other goroutines touch, and the descriptor that wakes the loop: once stopped is set nobody writes to
	// its number, which may be another's by then. No function of the caller's is called under it.
	mu      sync.Mutex
	posted  []func()
	woken   bool
	stopped bool

	taken []func()
	stop  bool
}

// New makes a loop. Close releases its descriptors; Run does it on return.
func New() (*Loop, error) {
	l := &Loop{start: time.Now(), scratch: make([]byte, ScratchSize)}
	if err := l.poll.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// Now is the loop's clock: monotonic, since New, read once per turn.
func (l *Loop) Now() time.Duration { return l.now }

// Clock reads the loop's clock anew.
func (l *Loop) Clock() time.Duration { return time.Since(l.start) }

// Scratch is the loop's own read buffer. Its contents are valid until the current call into the handler ends or
// another handler runs; whatever must live longer is copied into a lent buffer.
func (l *Loop) Scratch() []byte { return l.scratch }

// Post has fn run on the loop soon. It may be called from any goroutine, also before Run; it returns false when the
// loop has stopped and fn will never run.
func (l *Loop) Post(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.posted = append(l.posted, fn)
	if !l.woken {
		l.woken = true
		l.poll.wake()
	}
	return true
}

// Stop ends Run after the current turn. What was posted before is run.
func (l *Loop) Stop() {
	l.Post(func() { l.stop = true })
}

// Again has c's handler called once more in the next turn with no new event, for handlers that stop reading in order
// to be fair to others. A closed Conn is left alone.
func (l *Loop) Again(c *Conn) {
	if c.Open() && !c.again {
		c.again = true
		l.again = append(l.again, c)
	}
}

// Run works until Stop. The caller's handlers, timers and posted functions all run on this goroutine.
func (l *Loop) Run() error {
	defer l.release()
	for {
		var n int
		if len(l.again) > 0 || l.timers.due(l.now) {
			n = l.poll.wait()
		} else {
			// Polls first, and parks only if that finds nothing.
			next, timed := l.timers.next()
			var err error
			if n, err = l.poll.park(l.start, l.now, next, timed); err != nil {
				return err
			}
		}
		l.now = l.Clock()
		for i := range n {
			l.dispatch(i)
		}
		l.running, l.again = l.again, l.running[:0]
		for i, c := range l.running {
			l.running[i] = nil
			if c != nil {
				c.again = false
				c.handler.Ready(0)
			}
		}
		l.firing = true
		l.timers.run(l.now)
		l.firing = false
		l.turns++
		if l.stop {
			return nil
		}
	}
}

func (l *Loop) dispatch(i int) {
	fd, gen, ev := l.poll.event(i)
	if fd == l.poll.wakefd {
		l.poll.drainWake()
		l.runPosted()
		return
	}
	// A descriptor closed earlier in this turn, and perhaps opened anew, must not get the old one's event.
	if fd >= len(l.conns) || l.conns[fd] == nil || l.conns[fd].gen != gen {
		return
	}
	c := l.conns[fd]
	if !c.wantWrite {
		ev &^= Writable // a socket that is gone is always writable
	}
	c.handler.Ready(ev)
}

func (l *Loop) runPosted() {
	l.mu.Lock()
	l.taken, l.posted = l.posted, l.taken[:0]
	l.woken = false
	l.mu.Unlock()
	for i, fn := range l.taken {
		l.taken[i] = nil
		fn()
	}
	if cap(l.taken) > maxKept {
		l.taken = nil // a burst does not keep its memory
	}
}

// maxKept is how many entries a list may keep room for while it is empty.
const maxKept = 1024

// forget takes c off the lists of Again.
func (l *Loop) forget(c *Conn) {
	for _, list := range [][]*Conn{l.again, l.running} {
		for i := range list {
			if list[i] == c {
				list[i] = nil
			}
		}
	}
}

// release closes everything that is still registered.
func (l *Loop) release() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	// Post promised to run what it accepted.
	l.runPosted()
	for _, c := range l.conns {
		if c != nil {
			c.Close()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.poll.close()
}

// Close releases a loop that never ran, and does nothing after Run.
func (l *Loop) Close() { l.release() }
