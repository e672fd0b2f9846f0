package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// wholeMessage is the largest message of those that must be seen whole, in bytes. It fits the scratch buffer.
const wholeMessage = 32 << 10

// maxReported bounds a parameter that changes after the login, in bytes.
const maxReported = 1 << 10

// server is one server connection, a backend. It is linked to at most one client.
type server struct {
	conn   wire
	pb     *pool.Backend
	p      *Proxy
	pooled *pooled
	client *client
	lookup *lookup // instead of a client

	link    session.Link
	params  session.Params
	reports session.Params // as they were at the login: what it does not report then it never reports
	task    task
	probing *probe
	replay  replay
	recoded bool                // the client's encoding has been set, what is written in it comes next
	dirty   bool                // a client has left something in the session, or may have
	spoiled bool                // and it cannot be taken away
	failed  *pgwire.ErrorFields // what the task's query met
	fatal   bool                // it has told the client why it ends

	in       []byte // lent; read, not yet handled
	out      []byte // lent; not yet written, from outAt on
	outAt    int
	remain   int  // bytes of the current message still to come
	unheard  bool // they belong to a message that began when nobody was to hear it
	readable bool
	hungUp   bool // the server has closed its side; reading to the end tells when everything has been read
	closing  bool
	closed   bool

	// cancels in flight: until they have arrived the connection may not serve anybody else, whose query they would hit.
	cancels       int
	awaitsCancels bool
	inDoubt       bool // a cancel request may arrive at any time: when its client is done the connection is closed
	timer         eventloop.Timer

	user    string // of the login
	pid     uint32
	secret  []byte
	network string
	remote  string // address as dialed, for cancel requests
	at      candidate
	role    serverRole
	secure  cancelTLS
	id      uint64
}

// adopt makes a server connection of a finished login. On an error the socket is closed.
func (p *Proxy) adopt(b *pool.Backend, pl *pooled, d *dialed) (*server, error) {
	p.nextID++
	s := &server{p: p, pb: b, pooled: pl, user: d.user, pid: d.pid, secret: d.key, network: d.network, remote: d.remote, at: d.at, role: d.role, id: p.nextID, readable: true}
	s.link.Reset()
	if p.follows(&pl.route) {
		s.link.Track(&pl.statements, p.set.MaxPrepared)
	}
	for _, kv := range d.params {
		if name, ok := p.tracked.Canonical(kv.Name); ok {
			s.params = s.params.With(name, kv.Value)
		}
	}
	s.reports = s.params
	if err := p.loop.Add(&s.conn.Conn, d.fd, s); err != nil {
		return nil, err
	}
	if s.secure = d.secure; d.tls != nil {
		d.tls.enter(&s.conn.Conn, &p.loop.Buffers)
		d.tls.toEnd = true // a server says goodbye before its process ends, which its slot is free with
		s.conn.tls = d.tls
	}
	if len(d.rest) > 0 {
		s.in = append(p.loop.Buffers.Lend(len(d.rest)), d.rest...)
	}
	b.Ref = s
	p.servers[s] = struct{}{}
	if p.stale(d.at) {
		p.pools.Dismiss(p.now(), b, pool.AddressGone)
	}
	// The newest connection knows the server's configuration best.
	pl.welcome, pl.haveWelcome = d.welcome, true
	p.log.Debug("server connection opened", "database", pl.route.Database, "user", pl.route.User, "server", d.remote, "server_pid", d.pid)
	return s, nil
}

// Ready is the event loop's call.
func (s *server) Ready(ev eventloop.Events) {
	if ev&eventloop.Readable != 0 {
		s.readable = true
	}
	s.hungUp = s.hungUp || ev&eventloop.HangUp != 0
	if ev&eventloop.Writable != 0 && len(s.out) > 0 {
		s.flush()
	}
	s.pump()
	s.p.settle()
}

// pump reads and handles what the server sent, as long as the client takes it.
func (s *server) pump() {
	for turn := 0; s.readable || (len(s.in) > 0 && turn == 0); turn++ {
		if s.closed || (s.client != nil && len(s.client.out) > 0) {
			return
		}
		if turn == turnsPerCall {
			s.p.loop.Again(&s.conn.Conn)
			return
		}
		buf := s.p.loop.Scratch()
		n := copy(buf, s.in)
		s.p.loop.Buffers.Return(s.in)
		s.in = nil
		var err error
		if s.readable {
			var m int
			m, err = s.conn.Read(buf[n:])
			if m < len(buf)-n && err == nil && !s.hungUp && !s.conn.over() {
				s.readable = false
			}
			n += m
			s.pooled.counts.BytesSent += uint64(m)
		}
		rest := s.process(buf[:n])
		if s.closed {
			return
		}
		if len(rest) > 0 {
			s.in = append(s.p.loop.Buffers.Lend(len(rest)), rest...)
		}
		if err != nil {
			s.readable = false
			if !errors.Is(err, eventloop.ErrWouldBlock) {
				s.ended(err)
				return
			}
		}
		s.progress()
	}
}

// process relays whole ranges of buf to the client and returns what must wait for more bytes.
func (s *server) process(buf []byte) (rest []byte) {
	if s.closing {
		return nil // only the end of file matters
	}
	off := min(s.remain, len(buf))
	s.remain -= off
	b := s.p.answer()
	if s.unheard || s.swallows() {
		b.from = off
	}
	s.unheard = s.unheard && s.remain > 0
	tracks := s.link.Tracks()
	for off < len(buf) {
		typ, size, ok, err := pgwire.Header(buf[off:], s.p.set.MaxPacketSize)
		if err != nil {
			s.forwards(&b, buf, off)
			s.broken(err)
			return nil
		}
		if !ok {
			break
		}
		whole := off+size <= len(buf)
		var status byte
		switch typ {
		case pgwire.ReadyForQuery:
			if size != pgwire.HeaderSize+1 {
				s.forwards(&b, buf, off)
				s.broken(fmt.Errorf("server sent ReadyForQuery of length %d, allowed is 5", size-1))
				return nil
			}
			if whole {
				status = buf[off+pgwire.HeaderSize]
			}
		case pgwire.ParameterStatus:
			if size > wholeMessage {
				s.forwards(&b, buf, off)
				s.broken(fmt.Errorf("server sent a ParameterStatus of %d bytes, allowed are %d", size, wholeMessage))
				return nil
			}
		case pgwire.ErrorResponse:
			// Its text is wanted where nobody else reads it, or where it may name prepared statements.
			if size > wholeMessage || !s.swallows() && s.link.Prepared() == 0 && !s.refused() {
				whole = true
			}
		case pgwire.CommandComplete:
			if !tracks || size > longestTag {
				whole = true
			}
		case pgwire.NotificationResponse, pgwire.NoticeResponse:
			if !s.hears() || size > wholeMessage {
				whole = true
			}
		case pgwire.DataRow:
			if s.task != taskProbe && s.lookup == nil || size > wholeMessage {
				whole = true
			}
		default:
			whole = whole || s.lookup == nil || size > wholeMessage
		}
		if !whole {
			break
		}
		if tracks {
			s.localsBefore(&b, buf, off)
		}
		mine, err := s.link.Received(typ, status)
		if err == nil && mine && size != pgwire.HeaderSize {
			err = fmt.Errorf("server sent message %s of length %d, allowed is 4", pgwire.TypeName(typ), size-1)
		}
		if err != nil {
			s.forwards(&b, buf, off)
			s.broken(err)
			return nil
		}
		end := min(off+size, len(buf))
		body := buf[off+pgwire.HeaderSize : end]
		if !mine && typ != pgwire.ErrorResponse {
			s.replay.state = replayNone
		}
		switch {
		case mine:
			b.keep(buf, off)
			b.from = end
		case s.client == nil && s.task == taskNone && !harmlessIdle(typ):
			s.broken(fmt.Errorf("idle server connection got message %s", pgwire.TypeName(typ)))
			return nil
		case s.lookup != nil && s.lookup.answer.hears(typ):
			s.lookup.answer.heard(typ, size, body)
		case (typ == pgwire.NotificationResponse || typ == pgwire.NoticeResponse) && s.hears() && size <= wholeMessage:
			s.client.write(buf[off:end])
		case typ == pgwire.ParameterStatus:
			s.reported(body)
		case typ == pgwire.ErrorResponse && s.swallows():
			f := pgwire.ReadError(body)
			s.failed = &f
		case typ == pgwire.ErrorResponse && tracks && s.repairs(body):
			b.keep(buf, off)
			b.from = end
		case s.task == taskProbe && (typ == pgwire.DataRow || typ == pgwire.CommandComplete):
			s.probing.take(typ, body)
		case typ == pgwire.ErrorResponse:
			s.fatal = isFatal(body)
			other := s.reworded(body)
			if other == nil {
				other = s.translated(body)
			}
			s.refusedWrite(body)
			if other != nil && end == off+size && size <= wholeMessage {
				b.keep(buf, off)
				b.out = append(b.out, other...)
				b.from = end
			}
		case typ == pgwire.CommandComplete && tracks && size <= longestTag && purged(body):
			s.link.Deallocated()
		}
		s.remain = off + size - end
		s.unheard = s.remain > 0 && s.swallows()
		off = end
		if s.swallows() {
			b.from = off
			if typ == pgwire.ReadyForQuery || s.task == taskAbandon {
				s.taskStep()
				if s.closed || s.closing {
					return nil
				}
			}
		}
	}
	if tracks && s.remain == 0 {
		s.localsBefore(&b, buf, off)
	}
	s.forwards(&b, buf, off)
	return buf[off:]
}

// swallows: what the server says is not for a client.
func (s *server) swallows() bool {
	return s.client == nil || s.task != taskNone || s.client.state == stateLogin
}

// hears: the pooler asks for something in the middle of a client's session, so what the server says of its own accord is
// still for the client.
func (s *server) hears() bool {
	return s.client != nil && (s.task == taskProbe || s.task == taskRepeat || s.task == taskPause)
}

// isFatal looks for a severity that ends the connection, which stands at the start of an ErrorResponse.
func isFatal(body []byte) bool {
	body = body[:min(len(body), 64)]
	return bytes.Contains(body, []byte("VFATAL\x00")) || bytes.Contains(body, []byte("VPANIC\x00"))
}

// midMessage: the client has got the beginning of a message whose end is still to come.
func (s *server) midMessage() bool { return s.remain > 0 && !s.unheard && !s.swallows() }

// harmlessIdle are the messages a server may send at any time. An error is not: it announces the end.
func harmlessIdle(typ byte) bool {
	return typ == pgwire.NoticeResponse || typ == pgwire.NotificationResponse || typ == pgwire.ParameterStatus
}

// forwards relays a batch up to off.
func (s *server) forwards(b *batch, buf []byte, off int) {
	s.forward(b.bytes(buf, off))
	s.p.answered(b)
}

func (s *server) forward(b []byte) {
	if len(b) > 0 && s.client != nil {
		s.client.write(b)
	}
}

// reported: the server tells a parameter's value. The client that caused it keeps it for its session.
func (s *server) reported(body []byte) {
	name, value, ok := pgwire.ReadParameterStatus(body)
	if !ok {
		return
	}
	canonical, tracked := s.p.tracked.Canonical(name)
	if tracked {
		s.params = s.params.With(canonical, value)
		if canonical != "application_name" {
			s.link.Changed()
		}
		if c := s.client; c != nil && s.task == taskNone {
			c.params = c.params.With(canonical, value)
		}
		return
	}
	s.roleReported(name, value)
	// in_hot_standby and the configuration change for everybody; what a linked client has set is its own. Nothing is
	// added to what the login told: every client is told it.
	_, known := s.pooled.welcome.Get(name)
	if known && len(value) <= maxReported && (s.client == nil || name == "in_hot_standby") {
		s.pooled.welcome = s.pooled.welcome.With(name, value)
	}
}

// progress looks whether the client is done with this connection, after bytes from the server have been handled or
// flushed.
func (s *server) progress() {
	c := s.client
	if c == nil || s.task != taskNone || s.closed || s.closing {
		return
	}
	if len(c.out) > 0 {
		return
	}
	if c.stalled && !s.link.Unsure() && !s.link.UnsureUnnamed() {
		c.stalled = false
		s.p.loop.Again(&c.conn.Conn)
	}
	if s.remain > 0 || len(s.in) > 0 {
		return
	}
	if c.state == stateLeaving {
		if s.link.Abandon() != session.Wait {
			c.end("client close request")
		}
		return
	}
	if c.held || c.remain > 0 || c.gathers > 0 || !s.link.Settled() {
		return
	}
	c.answered()
	mode := s.pooled.route.Pool.Mode
	switch {
	case s.link.Lost():
		c.fail("08P01", "server connection lost step with its client")
		c.linger("server connection lost step")
	case s.link.Idle():
		if mode != pool.Session {
			c.over()
		} else {
			c.counted()
		}
	case mode == pool.Statement:
		c.fail("08P01", "transaction blocks not allowed in statement pooling mode")
		c.linger("transaction blocks not allowed in statement pooling mode")
	}
}

// write sends bytes to the server; what the socket does not take is kept in a lent buffer, and the client is not read
// until that is gone.
func (s *server) write(b []byte) {
	if s.closed {
		return
	}
	if len(s.out) > 0 {
		s.out = grow(&s.p.loop.Buffers, s.out, b)
		return
	}
	n, err := s.conn.Write(b)
	if err != nil && !errors.Is(err, eventloop.ErrWouldBlock) {
		// The server may have said why before it went: reading tells.
		s.readable = true
		s.p.loop.Again(&s.conn.Conn)
		return
	}
	if n < len(b) {
		s.out = append(s.p.loop.Buffers.Lend(len(b)-n), b[n:]...)
		s.outAt = 0
		s.conn.WantWrite(true)
	}
}

func (s *server) flush() {
	n, err := s.conn.Write(s.out[s.outAt:])
	if err != nil {
		if !errors.Is(err, eventloop.ErrWouldBlock) {
			s.dropOut()
			s.readable = true
		}
		return
	}
	s.outAt += n
	if s.outAt < len(s.out) {
		return
	}
	s.dropOut()
	if s.client != nil {
		s.client.pump()
	}
}

func (s *server) dropOut() {
	s.p.loop.Buffers.Return(s.out)
	s.out, s.outAt = nil, 0
	s.conn.WantWrite(false)
}

// broken: the server does not speak the protocol.
func (s *server) broken(err error) {
	s.p.counters.ServerViolations++
	s.p.log.Warn("server connection broke the protocol", "database", s.pooled.route.Database, "user", s.pooled.route.User, "server_pid", s.pid, "error", err)
	c, told := s.client, s.midMessage()
	why := pool.BadHeader
	if s.pb.State() == pool.Idle {
		why = pool.IdleServerDirty
	}
	s.discard(why)
	if c != nil {
		c.lostServer(told, err.Error())
	}
}

// ended: the server closed the connection, which proves that its slot is free.
func (s *server) ended(err error) {
	if s.closed {
		return
	}
	c, told := s.client, s.midMessage() || s.fatal
	if !s.closing {
		if !errors.Is(err, io.EOF) {
			s.p.log.Warn("server connection failed", "database", s.pooled.route.Database, "user", s.pooled.route.User, "server_pid", s.pid, "error", err)
		}
		s.lose(pool.ServerCrashed)
	}
	s.unlink()
	s.finish()
	if c != nil {
		s.p.counters.ServerCrashes++
		c.lostServer(told, "server conn crashed?")
	}
}

// unlink forgets the client, on both sides.
func (s *server) unlink() {
	if s.client != nil {
		s.client.server = nil
		s.client = nil
	}
	s.link.Serve(nil)
	if l := s.lookup; l != nil {
		s.lookup = nil
		l.lost()
	}
}

// discard has the pool forget the connection and closes it.
func (s *server) discard(why pool.Reason) {
	if s.closing || s.closed {
		return
	}
	s.lose(why)
	s.close(why.String())
}

// lose has the pool forget the connection. A client that the pool has linked to it, but that has not been told yet,
// waits on for another one.
func (s *server) lose(why pool.Reason) {
	next := s.pb.Client()
	s.p.pools.Discard(s.p.now(), s.pb, why)
	if next != nil && s.client == nil && s.lookup == nil {
		s.p.pools.Acquire(s.p.now(), next)
	}
}

// close ends the connection politely and waits for the server to close: only that proves that its slot is free. The
// pool has it as closing already; a client that is still linked is the caller's to tell.
func (s *server) close(reason string) {
	if s.closing || s.closed {
		return
	}
	s.closing = true
	s.p.log.Debug("closing server connection", "database", s.pooled.route.Database, "user", s.pooled.route.User, "server_pid", s.pid, "reason", reason)
	s.unlink()
	if len(s.out) > 0 {
		s.dropOut() // a message cut short: the server will see the end of file
	} else {
		_, _ = s.conn.Write(pgwire.AppendTerminate(nil))
	}
	s.conn.CloseWrite()
	s.readable = true
	s.p.loop.Again(&s.conn.Conn)
	s.p.loop.Set(&s.timer, s.p.loop.Now()+s.p.set.ServerCloseTimeout, func() {
		s.finish()
		s.p.settle()
	})
}

// finish closes the socket and gives the slot back.
func (s *server) finish() {
	if s.closed {
		return
	}
	s.closed = true
	s.link.Release()
	s.p.loop.Unset(&s.timer)
	s.p.loop.Buffers.Return(s.in)
	s.p.loop.Buffers.Return(s.out)
	s.in, s.out = nil, nil
	s.conn.Close()
	delete(s.p.servers, s)
	s.p.pools.Closed(s.p.now(), s.pb)
	s.p.stopIfEmpty()
}
