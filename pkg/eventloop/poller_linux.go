package eventloop

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const maxEvents = 256

// epollEvent is the kernel's struct epoll_event. golang.org/x/sys splits the data word into two int32; here they are
// descriptor and generation.
type epollEvent = unix.EpollEvent

// poller is an epoll instance that is only ever polled with timeout 0, and an eventfd to wake it.
type poller struct {
	fd     int
	wakefd int
	events [maxEvents]epollEvent
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
	p.fd, p.wakefd = fd, wake
	ev := epollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wake)}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		p.close()
		return fmt.Errorf("event loop: epoll_ctl: %w", err)
	}
	return nil
}

// wait collects what is ready now and never blocks, so the raw system call may skip the scheduler's bookkeeping.
func (p *poller) wait() int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), maxEvents, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
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
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev)
}

func (p *poller) wantWrite(fd int, gen uint32, on bool) error {
	ev := epollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd), Pad: int32(gen)}
	if on {
		ev.Events |= unix.EPOLLOUT
	}
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &ev)
}

func (p *poller) wake() {
	one := [8]byte{0: 1}
	// A full eventfd counter is awake already.
	_, _ = unix.Write(p.wakefd, one[:])
}

func (p *poller) drainWake() {
	var b [8]byte
	_, _ = unix.Read(p.wakefd, b[:])
}

func (p *poller) closeWake() { _ = unix.Close(p.wakefd) }

func (p *poller) close() {
	_ = unix.Close(p.fd)
	p.closeWake()
}
