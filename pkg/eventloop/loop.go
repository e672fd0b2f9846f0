// Package eventloop runs many sockets on one goroutine.
//
// A Loop owns an epoll instance, timers, lent buffers and a queue of functions posted by other goroutines. Everything it
// calls runs on the goroutine of Run, so what belongs to a loop needs no lock.
//
// It refuses to know what the bytes mean: no frames, no protocol, no pool. It starts no goroutine and never blocks in a
// system call: when nothing is ready the goroutine parks in the Go runtime's own poller, which costs no thread and no
// hand-off of the processor (epoll descriptors are pollable themselves).
package eventloop

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
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
	file    *os.File // the poller's descriptor, registered with the runtime: this is where the loop parks
	raw     syscall.RawConn
	parkFn  func(uintptr) bool // allocated once; parking allocates nothing
	nready  int
	conns   []*Conn // by descriptor
	gen     uint32
	again   []*Conn
	running []*Conn // the list being worked off while again fills up
	idle    []func()

	start    time.Time
	now      time.Duration
	timers   timerHeap
	deadline time.Duration // what the parked read is armed with; 0 is none

	Buffers Buffers
	scratch []byte

	// mu guards what other goroutines touch; nothing is called under it.
	mu      sync.Mutex
	posted  []func()
	woken   bool
	stopped bool

	taken []func()
}

// New makes a loop. Close releases its descriptors; Run does it on return.
func New() (*Loop, error) {
	l := &Loop{start: time.Now(), scratch: make([]byte, ScratchSize)}
	if err := l.poll.open(); err != nil {
		return nil, err
	}
	// A pollable descriptor in non-blocking mode: os.NewFile hands it to the runtime's poller.
	if err := syscall.SetNonblock(l.poll.fd, true); err != nil {
		l.poll.close()
		return nil, fmt.Errorf("event loop: cannot make the poll descriptor non-blocking: %w", err)
	}
	l.file = os.NewFile(uintptr(l.poll.fd), "eventloop")
	raw, err := l.file.SyscallConn()
	if err != nil {
		_ = l.file.Close()
		l.poll.closeWake()
		return nil, fmt.Errorf("event loop: %w", err)
	}
	if err := l.file.SetReadDeadline(time.Time{}); err != nil {
		_ = l.file.Close()
		l.poll.closeWake()
		return nil, fmt.Errorf("event loop: this kernel cannot poll a poll descriptor: %w", err)
	}
	l.raw = raw
	l.parkFn = func(uintptr) bool {
		l.nready = l.poll.wait()
		return l.nready != 0
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
	if l.stopped {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, fn)
	wake := !l.woken
	l.woken = true
	l.mu.Unlock()
	if wake {
		l.poll.wake()
	}
	return true
}

// Stop ends Run after the current turn. What was posted before is run.
func (l *Loop) Stop() {
	l.Post(func() {
		l.mu.Lock()
		l.stopped = true
		l.mu.Unlock()
	})
}

// Again has c's handler called once more in the next turn with no new event, for handlers that stop reading in order
// to be fair to others.
func (l *Loop) Again(c *Conn) {
	if !c.again {
		c.again = true
		l.again = append(l.again, c)
	}
}

// AtTurnEnd registers fn to be called at the end of every turn that handled something. For batching; it must be cheap.
func (l *Loop) AtTurnEnd(fn func()) { l.idle = append(l.idle, fn) }

// Run works until Stop. The caller's handlers, timers and posted functions all run on this goroutine.
func (l *Loop) Run() error {
	defer l.release()
	for {
		var n int
		if len(l.again) > 0 || l.timers.due(l.now) {
			n = l.poll.wait()
		} else {
			// Polls first, and parks only if that finds nothing.
			if err := l.park(); err != nil {
				return err
			}
			n = l.nready
		}
		l.now = l.Clock()
		for i := range n {
			l.dispatch(i)
		}
		l.running, l.again = l.again, l.running[:0]
		for i, c := range l.running {
			l.running[i] = nil
			c.again = false
			if c.fd >= 0 {
				c.handler.Ready(0)
			}
		}
		l.timers.run(l.now)
		for _, fn := range l.idle {
			fn()
		}
		if l.isStopped() {
			return nil
		}
	}
}

// park gives the processor away until a descriptor is ready, the next timer is due or Post wakes the loop.
func (l *Loop) park() error {
	l.nready = 0
	if next, ok := l.timers.next(); ok {
		// An armed deadline that comes earlier than needed costs one empty turn, moving it costs a runtime timer each
		// time: so it is only moved forward in time when it has passed.
		if l.deadline == 0 || next < l.deadline || l.deadline <= l.now {
			l.deadline = next
			if err := l.file.SetReadDeadline(l.start.Add(next)); err != nil {
				return fmt.Errorf("event loop: %w", err)
			}
		}
	} else if l.deadline != 0 && l.deadline <= l.now {
		l.deadline = 0
		if err := l.file.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("event loop: %w", err)
		}
	}
	err := l.raw.Read(l.parkFn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.deadline = 0
		return l.file.SetReadDeadline(time.Time{})
	}
	return err
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
	l.conns[fd].handler.Ready(ev)
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
}

func (l *Loop) isStopped() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped
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
	_ = l.file.Close()
	l.poll.closeWake()
}

// Close releases a loop that never ran.
func (l *Loop) Close() { l.release() }
