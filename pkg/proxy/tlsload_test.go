package proxy

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// bare logs in over TLS and leaves nothing of the client but its descriptor, so that its own memory does not count.
func bare(t *testing.T, p *pooler, config *tls.Config, use func(*raw)) (fd int) {
	t.Helper()
	r := p.raw(t)
	under := r.conn.(*net.TCPConn)
	r.inTLS(config).login()
	if use != nil {
		use(r)
	}
	control, err := under.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := control.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || fd < 0 {
		t.Fatal(err)
	}
	_ = under.Close()
	return fd
}

func TestAnIdleTLSClientCostsLittleMemory(t *testing.T) {
	const many = 500
	for name, c := range map[string]struct {
		use  func(*raw)
		most int64
	}{
		"that has only logged in":     {nil, 1},
		"that has asked":              {func(r *raw) { r.send(packet('Q', "select 1\x00")).until('Z') }, 1},
		"that has asked a long query": {func(r *raw) { r.send(packet('Q', strings.Repeat("x", 60<<10)+"\x00")).until('Z') }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := offeringTLS(t, TLSPrefer, nil)
			var fds []int
			defer func() {
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}()
			for range 20 {
				fds = append(fds, bare(t, p, unverified(), c.use))
			}
			before := heap()
			for range many {
				fds = append(fds, bare(t, p, unverified(), c.use))
			}
			each := (int64(heap()) - int64(before)) / many
			t.Logf("%d bytes of heap for each idle client", each)
			if each > c.most {
				t.Errorf("an idle client costs %d bytes of heap, allowed are %d", each, c.most)
			}
			if s := p.state(); s.BuffersLent != 0 || s.Clients != len(fds) {
				t.Errorf("%d clients hold %d buffers", s.Clients, s.BuffersLent)
			}
		})
	}
}

var _ = bytes.NewReader
var _ = io.EOF
var _ sync.Mutex
var _ = time.Now
var _ pgproto3.Query
var _ pgtest.Options
