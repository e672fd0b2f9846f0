package eventloop

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAcceptTellsWhoCame(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(t.TempDir(), "s")}[network]
			listener, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			file, err := listener.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(unix.SetNonblock(fd, true), file.Close()); err != nil {
				t.Fatal(err)
			}
			l := running(t)
			var c Conn
			on(t, l, func() {
				if err := l.Add(&c, fd, &handler{ready: func(Events) {}}); err != nil {
					t.Error(err)
				}
				if _, _, err := c.Accept(); !errors.Is(err, ErrWouldBlock) {
					t.Errorf("with nobody there Accept returns %v", err)
				}
			})
			peer, err := net.Dial(network, listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			on(t, l, func() {
				got, from, err := c.Accept()
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				defer closeFD(got)
				if from.IsValid() != (network != "unix") || from.IsValid() && from.String() != peer.LocalAddr().String() {
					t.Errorf("%v came, Accept says %v", peer.LocalAddr(), from)
				}
				flags, err := unix.FcntlInt(uintptr(got), unix.F_GETFL, 0)
				if err != nil || flags&unix.O_NONBLOCK == 0 {
					t.Errorf("the descriptor blocks: flags %x, %v", flags, err)
				}
				c.Close()
				if _, _, err := c.Accept(); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("a closed listener's Accept returns %v", err)
				}
			})
		})
	}
}
