//go:build darwin || freebsd

package eventloop

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const maxEvents = 256

// poller is a kqueue, for machines of developers. Here a parked loop blocks a thread: simple, and not as fast as it could
// be.
type poller struct {
	fd     int
	wakefd int // no descriptor: what event says in place of one
	gens   []uint32
	events [maxEvents]unix.Kevent_t
	// fetched are the generations of events, taken when they were fetched: closing a descriptor takes back the kernel's
	// events, but not those that are here already.
	fetched [maxEvents]uint32
}

func (p *poller) open() error {
	fd, err := unix.Kqueue()
	if err != nil {
		return fmt.Errorf("event loop: kqueue: %w", err)
	}
	unix.CloseOnExec(fd)
	p.fd, p.wakefd = fd, -1
	if err := p.change(0, unix.EVFILT_USER, unix.EV_ADD|unix.EV_CLEAR, 0); err != nil {
		p.close()
		return fmt.Errorf("event loop: kevent: %w", err)
	}
	return nil
}

func (p *poller) change(ident, filter, flags int, fflags uint32) error {
	var k [1]unix.Kevent_t
	unix.SetKevent(&k[0], ident, filter, flags)
	k[0].Fflags = fflags
	_, err := unix.Kevent(p.fd, k[:], nil, nil)
	return err
}

// park collects what is ready; if nothing is, it waits until something is, the next timer is due or wake is called.
func (p *poller) park(start time.Time, _, next time.Duration, timed bool) (int, error) {
	if !timed {
		return p.collect(nil)
	}
	timeout := unix.NsecToTimespec(max(0, next-time.Since(start)).Nanoseconds())
	return p.collect(&timeout)
}

// wait collects what is ready now.
func (p *poller) wait() int {
	n, err := p.collect(&unix.Timespec{})
	if err != nil {
		return 0
	}
	return n
}

func (p *poller) collect(timeout *unix.Timespec) (int, error) {
	n, err := unix.Kevent(p.fd, nil, p.events[:], timeout)
	if err != nil {
		if errors.Is(err, unix.EINTR) {
			return 0, nil // one empty turn
		}
		return 0, fmt.Errorf("event loop: kevent: %w", err)
	}
	for i := range n {
		if k := &p.events[i]; k.Filter != unix.EVFILT_USER {
			p.fetched[i] = p.gens[k.Ident]
		}
	}
	return n, nil
}

func (p *poller) event(i int) (fd int, gen uint32, ev Events) {
	k := &p.events[i]
	switch k.Filter {
	case unix.EVFILT_USER:
		return p.wakefd, 0, 0
	case unix.EVFILT_READ:
		ev = Readable
	case unix.EVFILT_WRITE:
		ev = Writable
	}
	if k.Flags&(unix.EV_EOF|unix.EV_ERROR) != 0 {
		ev |= Readable | HangUp
	}
	return int(k.Ident), p.fetched[i], ev
}

func (p *poller) add(fd int, gen uint32) error {
	for fd >= len(p.gens) {
		p.gens = append(p.gens, 0)
	}
	p.gens[fd] = gen
	return p.change(fd, unix.EVFILT_READ, unix.EV_ADD|unix.EV_CLEAR, 0)
}

func (p *poller) wantWrite(fd int, _ uint32, on bool) error {
	if on {
		return p.change(fd, unix.EVFILT_WRITE, unix.EV_ADD|unix.EV_CLEAR, 0)
	}
	return p.change(fd, unix.EVFILT_WRITE, unix.EV_DELETE, 0)
}

func (p *poller) wake() { _ = p.change(0, unix.EVFILT_USER, 0, unix.NOTE_TRIGGER) }

func (p *poller) drainWake() {} // EV_CLEAR has done it

func (p *poller) close() {
	_ = unix.Close(p.fd)
	p.fd = -1
}
