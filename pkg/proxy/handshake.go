package proxy

import (
	"crypto/tls"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
)

const (
	// maxHandshakes bounds the handshakes under way with clients; each has a stack. A client gets a place when the first
	// record of its ClientHello is here, so that one that says nothing has none.
	maxHandshakes = 256
	// handshakePatience is how long a client in its handshake may be silent while others wait for a place. A storm of
	// clients on a machine that has nothing left for them may take its time.
	handshakePatience = 5 * time.Second
	// A TLS record has a header of recordHeader bytes, and its content at most recordContent in the clear.
	recordHeader    = 5
	recordContent   = 16 << 10
	recordHandshake = 22
)

var errHandshakeOver = errors.New("the connection has ended during the TLS handshake")

// handshake is a TLS handshake with a client. crypto/tls runs one in a single call which cannot be resumed after an
// error, so that call is a coroutine: it is resumed when bytes have come and stands still where it needs more. It is
// resumed outside the loop, because signing takes a processor for up to a millisecond, and for few clients at a time.
type handshake struct {
	client *client
	tls    *secured
	next   func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool // inside the coroutine

	flight  []byte // what it has said since it was resumed
	err     error  // when it has ended
	ended   bool
	running bool // it has been resumed; all above is its own until it is back in the loop
	silent  time.Duration
}

// handshakes are those of all clients.
type handshakes struct {
	taken   int // places
	waiting []*client
	begun   map[*handshake]struct{}
	steps   offload

	patience time.Duration
	evict    eventloop.Timer
}

func newHandshake(c *client, config *tls.Config) *handshake {
	h := &handshake{client: c, tls: &secured{}}
	h.tls.shake = h
	h.tls.conn = tls.Server((*cipherSide)(h.tls), config)
	h.next, h.stop = iter.Pull(func(yield func(struct{}) bool) {
		h.yield = yield
		h.err = h.tls.conn.Handshake()
		h.ended = true
	})
	return h
}

// awaitInput lets the coroutine stand still until there is something to be read.
func (h *handshake) awaitInput(s *secured) error {
	for len(s.in) == 0 {
		if !h.yield(struct{}{}) {
			return errHandshakeOver
		}
	}
	return nil
}

// offersTLS: this client may begin TLS.
func (c *client) offersTLS() bool { return c.p.set.ClientTLS != nil && !c.isUnix && c.conn.tls == nil }

// direct: the client begins with TLS instead of asking for it.
func (c *client) direct(buf []byte) bool {
	return buf[0] == recordHandshake && c.login.askedEncrypted == 0 && c.offersTLS()
}

// shakeHands gives the handshake what has come and says how much of it was taken: all, or nothing yet.
func (c *client) shakeHands(buf []byte) int {
	l, hs := c.login, &c.p.shakes
	h := l.shake
	if h == nil {
		if !wholeRecord(buf) {
			return 0
		}
		if !l.placed && hs.taken >= maxHandshakes {
			l.busy, l.queued = true, true
			hs.waiting = append(hs.waiting, c)
			c.p.evictSilent()
			return 0
		}
		if !l.placed {
			l.placed = true
			hs.taken++
		}
		h = newHandshake(c, c.p.set.ClientTLS.config)
		l.shake = h
		if hs.begun == nil {
			hs.begun = map[*handshake]struct{}{}
		}
		hs.begun[h] = struct{}{}
	}
	h.tls.in = append(h.tls.in, buf...)
	l.busy, h.running = true, true
	hs.steps.run(c.p, func() any { h.next(); return nil }, func(any) { c.shaken(h) })
	return len(buf)
}

// wholeRecord: the first record is here, or what is here is none, which is for crypto/tls to say.
func wholeRecord(buf []byte) bool {
	if buf[0] != recordHandshake {
		return true
	}
	if len(buf) < recordHeader {
		return false
	}
	size := int(buf[3])<<8 | int(buf[4])
	return size > recordContent || len(buf) >= recordHeader+size
}

// shaken: the coroutine stands still again, or has ended.
func (c *client) shaken(h *handshake) {
	h.running = false
	if c.state != stateLogin || c.login.shake != h {
		c.p.endHandshake(h) // the client has gone meanwhile
		return
	}
	c.login.busy = false
	flight := h.flight
	h.flight = nil
	switch {
	case !h.ended:
		h.silent = c.p.loop.Now()
		c.p.evictSilent()
		if len(flight) > 0 {
			c.write(flight)
		}
	case h.err != nil:
		c.log().Info("TLS handshake failed", "error", h.err)
		c.counters().LoginFailures++
		if len(flight) > 0 {
			c.write(flight) // an alert
		}
		c.linger("")
		return
	default:
		c.secure(h.tls, flight)
		c.dropHandshake()
		c.login.stage = loginFirst
		c.readable = true // what came behind the handshake has been read already
	}
	c.pump()
}

// secure has all further bytes go through TLS, behind the last flight of the handshake.
func (c *client) secure(s *secured, flight []byte) {
	s.enter(&c.conn.Conn, &c.p.loop.Buffers)
	s.out, s.outAt = c.out, c.outAt // what is left of flights before
	c.out, c.outAt = nil, 0
	c.conn.tls = s
	if len(flight) > 0 {
		_, _ = (*cipherSide)(s).Write(flight)
	}
	if err := s.flush(); errors.Is(err, eventloop.ErrWouldBlock) {
		c.conn.WantWrite(true)
	} else if err != nil {
		c.dead = true
		c.p.loop.Again(&c.conn.Conn)
	}
}

// dropHandshake ends a handshake, if there is one, and gives its place to the next client.
func (c *client) dropHandshake() {
	l, hs := c.login, &c.p.shakes
	if l.queued {
		l.queued = false
		hs.waiting = slices.DeleteFunc(hs.waiting, func(other *client) bool { return other == c })
	}
	if h := l.shake; h != nil {
		l.shake = nil
		if !h.running {
			c.p.endHandshake(h)
		}
	}
	if !l.placed {
		return
	}
	l.placed = false
	hs.taken--
	for len(hs.waiting) > 0 && hs.taken < maxHandshakes {
		next := hs.waiting[0]
		hs.waiting[0] = nil
		hs.waiting = hs.waiting[1:]
		next.login.queued, next.login.busy = false, false
		next.login.placed = true
		hs.taken++
		next.p.loop.Again(&next.conn.Conn)
	}
}

// endHandshake lets the coroutine run to its end, which does nothing more.
func (p *Proxy) endHandshake(h *handshake) {
	h.stop()
	delete(p.shakes.begun, h)
}

// endHandshakes is for when the loop has ended, and every goroutine of work.
func (p *Proxy) endHandshakes() {
	for h := range p.shakes.begun {
		p.endHandshake(h)
	}
}

// evictSilent takes the places of clients that have said nothing for too long, while others wait for one; those who have
// been silent for longest go first.
func (p *Proxy) evictSilent() {
	hs := &p.shakes
	now := p.loop.Now()
	for len(hs.waiting) > 0 {
		var oldest *handshake
		for h := range hs.begun {
			if !h.running && h.client.state == stateLogin && h.client.login.shake == h && (oldest == nil || h.silent < oldest.silent) {
				oldest = h
			}
		}
		next := now + hs.patience // all of them are at work
		if oldest != nil {
			next = oldest.silent + hs.patience
		}
		if next > now {
			if !hs.evict.Armed() || hs.evict.When() > next {
				p.loop.Set(&hs.evict, next, func() {
					p.evictSilent()
					p.settle()
				})
			}
			return
		}
		oldest.client.log().Info("TLS handshake given up", "reason", "the client was silent while others waited")
		oldest.client.counters().LoginFailures++
		oldest.client.linger("")
	}
}
