//go:build darwin || freebsd

package eventloop

import (
	"errors"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

func receive(fd int, p []byte) (int, syscall.Errno) { return transfer(syscall.Read(fd, p)) }

func send(fd int, p []byte) (int, syscall.Errno) { return transfer(syscall.Write(fd, p)) }

func transfer(n int, err error) (int, syscall.Errno) {
	if errno := number(err); errno != 0 {
		return 0, errno
	}
	return n, 0
}

func accept(fd int) (int, netip.AddrPort, syscall.Errno) {
	n, sa, err := unix.Accept(fd)
	if err != nil {
		return -1, netip.AddrPort{}, number(err)
	}
	unix.CloseOnExec(n)
	if err := unix.SetNonblock(n, true); err != nil {
		closeFD(n)
		return -1, netip.AddrPort{}, number(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return n, netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), 0
	case *unix.SockaddrInet6:
		return n, netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), 0
	}
	return n, netip.AddrPort{}, 0
}

func closeFD(fd int) { _ = unix.Close(fd) }

func number(err error) syscall.Errno {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	return errno
}
