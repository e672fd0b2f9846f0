package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// Sizes of cancel keys in bytes, the pid included. Protocol 3.2 made their length free.
const (
	keySize     = 8
	longKeySize = 20
)

// cancelKey is what a client presents to cancel: its pid and secret as sent in BackendKeyData.
type cancelKey struct {
	key  [longKeySize]byte
	size uint8
}

func (k *cancelKey) bytes() []byte { return k.key[:k.size] }

// spokenMinor is the protocol 3.x that is spoken with a client that asked for x: nobody has ever spoken 3.1.
func spokenMinor(asked uint16) uint16 {
	if asked < 2 {
		return 0
	}
	return 2
}

// maxCancels bounds the cancel requests under way to servers.
const maxCancels = 128

// cancelFor carries a client's CancelRequest to the server connection that works for it now. A client that has none, or
// nothing under way, has nothing to cancel: the request is dropped, as PostgreSQL drops one that comes late.
func (p *Proxy) cancelFor(req pgwire.CancelRequest, done func()) {
	k, ok := keyOf(req.PID, req.Key)
	c := p.keys[k]
	if !ok || c == nil {
		p.log.Info("cancel request with an unknown key")
		done()
		return
	}
	if c.server == nil || !c.server.link.Busy() || c.server.task != taskNone {
		done()
		return
	}
	p.cancelServer(c.server, done)
}

// sendCancel cancels what s runs, for the pooler's own reasons. Beyond the bound it waits for its turn.
func (p *Proxy) sendCancel(s *server) {
	if p.cancels < maxCancels {
		p.cancelServer(s, func() {})
		return
	}
	s.cancels++
	p.moreCancels = append(p.moreCancels, func() {
		s.cancels--
		p.cancelServer(s, func() {})
	})
}

// cancelServer sends the request over a connection of its own and awaits its end: then the signal has been sent. Until
// that, s serves nobody else.
func (p *Proxy) cancelServer(s *server, done func()) {
	if p.cancels >= maxCancels || len(s.secret) == 0 {
		p.log.Warn("cancel request dropped", "under_way", p.cancels, "allowed", maxCancels)
		done()
		return
	}
	p.cancels++
	s.cancels++
	p.counters.Cancels++
	network, addr, timeout, secure := s.network, s.remote, p.set.CancelWaitTimeout, s.secure
	packet := pgwire.AppendCancel(nil, s.pid, s.secret)
	p.work(func() {
		// The context ends with the loop, which waits for cancels when it stops.
		inDoubt, err := deliverCancel(p.ctx, network, addr, packet, timeout, secure)
		p.loop.Post(func() {
			if err != nil {
				p.log.Warn("cancel request failed", "server", addr, "error", err)
			}
			p.cancels--
			s.cancels--
			s.inDoubt = s.inDoubt || inDoubt
			if len(p.moreCancels) > 0 {
				next := p.moreCancels[0]
				p.moreCancels = p.moreCancels[1:]
				next()
			}
			s.cancelArrived()
			done()
			p.settle()
			p.stopIfEmpty()
		})
	})
}

// cancelArrived lets the connection go on to others.
func (s *server) cancelArrived() {
	if s.cancels > 0 || s.closed || s.closing {
		return
	}
	switch {
	case s.awaitsCancels:
		s.cleanUp()
	case s.task == taskPause && s.client != nil:
		s.task = taskNone
		s.client.over()
	}
}

// deliverCancel sends a cancel request. In doubt it may yet arrive.
func deliverCancel(ctx context.Context, network, addr string, packet []byte, timeout time.Duration, secure cancelTLS) (inDoubt bool, err error) {
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	unwatch := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()
	through, err := secure.encrypt(conn)
	if err != nil {
		return false, err
	}
	if _, err := through.Write(packet); err != nil {
		return true, err
	}
	// The server answers nothing; it closes when the signal has been sent.
	var b [1]byte
	if _, err = through.Read(b[:]); errors.Is(err, os.ErrDeadlineExceeded) {
		return true, fmt.Errorf("the server did not take note of a cancel request within %v", timeout)
	}
	return false, nil
}

// keyOf makes the key of a request; no client has one of another length.
func keyOf(pid uint32, key []byte) (k cancelKey, ok bool) {
	if len(key) != keySize-4 && len(key) != longKeySize-4 {
		return k, false
	}
	binary.BigEndian.PutUint32(k.key[:4], pid)
	k.size = uint8(4 + copy(k.key[4:], key))
	return k, true
}
