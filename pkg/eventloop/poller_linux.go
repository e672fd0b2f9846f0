package eventloop

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const maxEvents = 256

// epollEvent is the kernel's struct epoll_event. golang.org/x/sys splits the data word into two int32; here they are
// descriptor and generation.
type epollEvent = unix.EpollEvent

// poller is an epoll instance that is only ever polled with timeout 0, and an eventfd to wake it.
type poller struct {
	fd       int
	wakefd   int
	file     *os.File // fd, registered with the runtime: this is where the loop parks; owns fd
	raw      syscall.RawConn
	parkFn   func(uintptr) bool // allocated once; parking allocates nothing
	nready   int
	deadline time.Duration // what the parked read is armed with; 0 is none
	events   [maxEvents]epollEvent
	drained  [8]byte
}

func (p *poller) open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("event loop: epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("event loop: eventfd: %w", err)
	}
	// A pollable descriptor in non-blocking mode: os.NewFile hands it to the runtime's poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		_ = unix.Close(wake)
		return fmt.Errorf("event loop: cannot make the poll descriptor non-blocking: %w", err)
	}
	p.fd, p.wakefd = fd, wake
	p.file = os.NewFile(uintptr(fd), "eventloop")
	ev := epollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wake)}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		p.close()
		return fmt.Errorf("event loop: epoll_ctl: %w", err)
	}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.close()
		return fmt.Errorf("event loop: %w", err)
	}
	if err := p.file.SetReadDeadline(time.Time{}); err != nil {
		p.close()
		return fmt.Errorf("event loop: this kernel cannot poll a poll descriptor: %w", err)
	}
	p.parkFn = func(uintptr) bool {
		p.nready = p.wait()
		return p.nready != 0
	}
	return nil
}

// park collects what is ready; if nothing is, it gives the processor away until a descriptor is, the next timer is due or
// wake is called.
func (p *poller) park(start time.Time, now, next time.Duration, timed bool) (int, error) {
	if timed {
		// An armed deadline that comes earlier than needed costs one empty turn, moving it costs a runtime timer each
		// time: so it is only moved forward in time when it has passed.
		if p.deadline == 0 || next < p.deadline || p.deadline <= now {
			p.deadline = next
			if err := p.file.SetReadDeadline(start.Add(next)); err != nil {
				return 0, fmt.Errorf("event loop: %w", err)
			}
		}
	} else if p.deadline != 0 && p.deadline <= now {
		p.deadline = 0
		if err := p.file.SetReadDeadline(time.Time{}); err != nil {
			return 0, fmt.Errorf("event loop: %w", err)
		}
	}
	p.nready = 0
	err := p.raw.Read(p.parkFn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.deadline = 0
		err = p.file.SetReadDeadline(time.Time{})
		// One that had passed before has kept the runtime from asking.
		p.nready = p.wait()
	}
	return p.nready, err
}

// wait collects what is ready now and never blocks, so the raw system call may skip the scheduler's bookkeeping.
func (p *poller) wait() int {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), maxEvents, 0, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case syscall.EINTR:
			continue
		}
		return 0
	}
}

func (p *poller) event(i int) (fd int, gen uint32, ev Events) {
	e := &p.events[i]
	if e.Events&(unix.EPOLLIN|unix.EPOLLERR|unix.EPOLLHUP|unix.EPOLLRDHUP) != 0 {
		ev |= Readable
	}
	if e.Events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		ev |= Writable
	}
	if e.Events&(unix.EPOLLERR|unix.EPOLLHUP|unix.EPOLLRDHUP) != 0 {
		ev |= HangUp
	}
	return int(e.Fd), uint32(e.Pad), ev
}

// Edge-triggered: one registration for the life of the descriptor. EPOLLOUT is only added while a write is blocked,
// because a Unix socket reports it at every read of its peer.
func (p *poller) add(fd int, gen uint32) error {
	ev := epollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd), Pad: int32(gen)}
	return p.control(unix.EPOLL_CTL_ADD, fd, &ev)
}

func (p *poller) wantWrite(fd int, gen uint32, on bool) error {
	ev := epollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd), Pad: int32(gen)}
	if on {
		ev.Events |= unix.EPOLLOUT
	}
	return p.control(unix.EPOLL_CTL_MOD, fd, &ev)
}

func (p *poller) control(op, fd int, ev *epollEvent) error {
	if _, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// one is what makes an eventfd readable; a variable, so that writing it allocates nothing.
var one = [8]byte{0: 1}

func (p *poller) wake() {
	// A full eventfd counter is awake already.
	_, _ = unix.Write(p.wakefd, one[:])
}

func (p *poller) drainWake() {
	_, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(p.wakefd), uintptr(unsafe.Pointer(&p.drained)), unsafe.Sizeof(p.drained))
}

func (p *poller) close() {
	_ = p.file.Close()
	_ = unix.Close(p.wakefd)
	p.fd, p.wakefd = -1, -1
}
