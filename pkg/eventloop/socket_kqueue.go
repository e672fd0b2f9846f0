//go:build darwin || freebsd

package eventloop

import (
	"errors"
	"syscall"
)

func receive(fd int, p []byte) (int, syscall.Errno) { return transfer(syscall.Read(fd, p)) }

func send(fd int, p []byte) (int, syscall.Errno) { return transfer(syscall.Write(fd, p)) }

func transfer(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return 0, errno
	}
	return n, 0
}
