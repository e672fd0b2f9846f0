package proxy

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

const (
	// holdSize is how many bytes of an incomplete first message an unlinked client may send before it gets a server
	// connection: a slow sender must not keep one waiting for the rest of its query.
	holdSize = 16 << 10
	// turnsPerCall is how many times a connection is read in one call before others get their turn.
	turnsPerCall = 4
	// lingerTime and lingerBytes bound how long a client that was told why it is closed is read from, so that its own
	// unread bytes do not make the kernel throw the reason away.
	lingerTime  = time.Second
	lingerBytes = 8 << 20
)

// clientState is where a client connection stands.
type clientState uint8

const (
	// stateLogin: before ReadyForQuery; login has the details.
	stateLogin clientState = iota
	// stateIdle: logged in, no server connection. The next message that needs one makes it stateWaiting or stateLinked.
	stateIdle
	// stateWaiting: in its pool's queue. Nothing is read.
	stateWaiting
	// stateLinked: has a server connection.
	stateLinked
	// stateLeaving: said Terminate, or closed its side, while the server still owed answers. They are delivered, then
	// it ends.
	stateLeaving
	// stateLinger: was told why it is closed; what it still sends is thrown away.
	stateLinger
	// stateEnded: closed.
	stateEnded
)

// client is one client connection. It owns lent buffers only while bytes are pending.
type client struct {
	conn wire
	pc   pool.Client
	p    *Proxy

	pooled *pooled // nil before login
	server *server // nil unless linked
	login  *login  // nil after login
	params session.Params

	in     []byte // lent; read, not yet forwarded
	out    []byte // lent; not yet written, from outAt on
	outAt  int
	remain int // bytes of the current message still to come; they are forwarded, or dropped while there is no server

	session *sessionState
	began   session.Params // what its session began with

	names                session.Names // of prepared statements
	plannedOf, plannedAs session.Params
	stalled              bool   // the next message must wait for an answer
	gather               []byte // the beginning of a large Parse
	gathers              int    // how long it will be

	state    clientState
	readable bool
	hungUp   bool // the client has closed its side; reading to the end tells when everything has been read
	notified bool // was told that it queues
	held     bool // linked, but its request waits until its parameters are set
	dead     bool // a write failed
	// repeating: what it says comes from a batch that is said again.
	repeating bool
	isUnix    bool
	index     int // in Proxy.clients

	key       cancelKey
	id        uint64
	addr      netip.AddrPort
	since     time.Duration // of the connection
	started   time.Duration // of the transaction under way, queueing included; 0 is none
	asked     time.Duration // of the query under way, likewise
	quiet     time.Duration // when the last answer was complete
	timeouts  *Timeouts     // nil before login
	lingering int
}

// Ready is the event loop's call.
func (c *client) Ready(ev eventloop.Events) {
	if ev&eventloop.Readable != 0 {
		c.readable = true
	}
	if ev&eventloop.Writable != 0 && (len(c.out) > 0 || c.conn.unsent()) {
		c.flush()
	}
	c.hungUp = c.hungUp || ev&eventloop.HangUp != 0
	if c.dead {
		c.end("client unexpected eof")
	}
	c.pump()
	// A client that went away while it waits must not be given capacity, nor have its query run for nobody.
	if c.hungUp && (c.state == stateWaiting || c.held || (c.state == stateLogin && c.login.busy)) {
		c.end("client unexpected eof")
	}
	c.p.settle()
}

// pump reads and handles what the client sent, as long as somebody can take it.
func (c *client) pump() {
	for turn := 0; c.readable || (len(c.in) > 0 && turn == 0); turn++ {
		if !c.wantsInput() {
			return
		}
		if turn == turnsPerCall {
			c.p.loop.Again(&c.conn.Conn)
			return
		}
		buf := c.p.loop.Scratch()
		n := copy(buf, c.in)
		c.p.loop.Buffers.Return(c.in)
		c.in = nil
		var err error
		if c.readable {
			var m int
			m, err = c.conn.Read(buf[n:])
			// A short read has emptied the socket; the next event comes when there is more. The end may have come with
			// the bytes, though, and is not announced again.
			if m < len(buf)-n && err == nil && !c.hungUp && !c.conn.over() {
				c.readable = false
			}
			n += m
			if c.pooled != nil {
				c.pooled.counts.BytesReceived += uint64(m)
			}
		}
		rest := c.process(buf[:n])
		if len(rest) > 0 && c.state != stateEnded {
			c.in = append(c.p.loop.Buffers.Lend(len(rest)), rest...)
		}
		if err != nil {
			c.readable = false
			if !errors.Is(err, eventloop.ErrWouldBlock) {
				c.gone(true)
			}
			return
		}
	}
}

// wantsInput: somebody can take what the client sends. Otherwise it stays in the kernel, and the client feels it.
func (c *client) wantsInput() bool {
	switch c.state {
	case stateLogin:
		return !c.login.busy
	case stateIdle, stateLinger:
		return true
	case stateLinked:
		return len(c.server.out) == 0 && c.server.task == taskNone && !c.stalled
	}
	return false
}

// process handles bytes and returns those that must wait. It never keeps buf.
func (c *client) process(buf []byte) (rest []byte) {
	switch c.state {
	case stateLogin:
		return c.loginInput(buf)
	case stateLinger:
		c.lingering += len(buf)
		if c.lingering > lingerBytes {
			c.end("")
		}
		return nil
	case stateIdle, stateLinked:
		return c.relay(buf)
	}
	return nil
}

// write sends bytes to the client; what the socket does not take is kept in a lent buffer, and its server is not read
// until that is gone.
func (c *client) write(b []byte) {
	if len(c.out) > 0 {
		c.out = grow(&c.p.loop.Buffers, c.out, b)
		return
	}
	n, err := c.conn.Write(b)
	if err != nil && !errors.Is(err, eventloop.ErrWouldBlock) {
		// Ended from the loop, not from here: the caller is in the middle of a server's bytes.
		c.dead = true
		c.p.loop.Again(&c.conn.Conn)
		return
	}
	if n < len(b) {
		c.out = append(c.p.loop.Buffers.Lend(len(b)-n), b[n:]...)
		c.outAt = 0
		c.conn.WantWrite(true)
	}
}

// flush writes what is pending, then lets the other side go on.
func (c *client) flush() {
	n, err := c.conn.Write(c.out[c.outAt:])
	if err != nil {
		if !errors.Is(err, eventloop.ErrWouldBlock) {
			c.p.loop.Buffers.Return(c.out)
			c.out, c.outAt = nil, 0
			c.dead = true
		}
		return
	}
	c.outAt += n
	if c.outAt < len(c.out) {
		return
	}
	c.p.loop.Buffers.Return(c.out)
	c.out, c.outAt = nil, 0
	c.conn.WantWrite(false)
	if c.state == stateLinger {
		c.conn.CloseWrite()
	}
	if s := c.server; s != nil {
		s.progress()
		s.pump()
	}
}

// grow appends b to a lent buffer, borrowing a larger one when it does not fit.
func grow(bufs *eventloop.Buffers, buf, b []byte) []byte {
	if len(buf)+len(b) <= cap(buf) {
		return append(buf, b...)
	}
	larger := append(append(bufs.Lend(len(buf)+len(b)), buf...), b...)
	bufs.Return(buf)
	return larger
}

// violation ends a client that broke the protocol; what came before in the same read is still forwarded.
func (c *client) violation(before []byte, err error) {
	c.send(before)
	c.counters().ProtocolViolations++
	c.fail("08P01", err.Error())
	c.abandon()
	c.linger(err.Error())
}

// refused: the pool will not serve the waiting client.
func (c *client) refused(why pool.Reason) {
	code, msg := c.refusal(why)
	if c.state == stateLogin {
		c.loginRefused(code, msg)
		return
	}
	c.counters().WaitFailures++
	c.fail(code, msg)
	c.linger(why.String())
}

// fail tells the client why it ends. In the middle of a message, or of a TLS handshake, nothing can be said.
func (c *client) fail(code, message string) {
	if c.server != nil && c.server.midMessage() || c.state == stateLogin && c.login.stage == loginTLS {
		return
	}
	c.write(pgwire.AppendError(nil, pgwire.Fatal, code, message))
}

// lostServer: the linked server connection is gone; told says that the client has got half a message, or the server's own
// word about it, so that nothing can be added.
func (c *client) lostServer(told bool, why string) {
	if c.state == stateLogin {
		c.loginRefused("08006", why)
		return
	}
	if !told {
		c.fail("08P01", why)
	}
	c.linger(why)
}

// gone: the client said goodbye, or closed its side. Answers under way are still delivered, as the server would.
func (c *client) gone(eof bool) {
	reason := "client close request"
	if eof {
		reason = "client unexpected eof"
	}
	s := c.server
	if c.state == stateLinked && s != nil && (s.link.Busy() || s.task != taskNone) && c.conn.Open() && c.remain == 0 {
		c.state = stateLeaving
		// In a transaction block the work will be rolled back anyway: no reason to let it run on.
		if eof && s.link.Status() != pgwire.StatusIdle {
			c.p.sendCancel(s)
		}
		if s.task == taskNone && s.link.Abandon() == session.Wait {
			return
		}
	}
	c.end(reason)
}

// abandon leaves the server connection, which is cleaned and goes on without this client.
func (c *client) abandon() {
	s := c.server
	if s == nil {
		return
	}
	// PostgreSQL too gives up a query when it cannot write the answer.
	if c.dead && s.task == taskNone && s.link.Busy() && s.cancels == 0 {
		c.p.sendCancel(s)
	}
	partial := c.remain > 0 || (s.task == taskParams && s.untold(c.params))
	c.stain(s)
	c.server, s.client = nil, nil
	s.link.Serve(nil)
	c.counted()
	s.abandoned(partial)
}

// linger closes the sending side and reads on for a moment, so that the client sees why.
func (c *client) linger(reason string) {
	if c.state == stateEnded || c.state == stateLinger {
		return
	}
	c.forget(reason)
	c.abandon()
	if c.pooled != nil {
		c.p.pools.Disconnect(c.p.now(), &c.pc)
		c.pooled = nil
	}
	c.state = stateLinger
	c.p.loop.Buffers.Return(c.in)
	c.in = nil
	c.remain = 0
	if len(c.out) == 0 { // else flush does it: the reason is last in line
		c.conn.CloseWrite()
	}
	c.readable = true
	c.login = &login{}
	c.p.loop.Set(&c.login.timer, c.p.loop.Now()+lingerTime, func() { c.end("") })
	c.p.loop.Again(&c.conn.Conn)
}

// forget takes the client off the pool's and the cancel keys' books; it can be called twice.
func (c *client) forget(reason string) {
	if c.login != nil {
		c.p.loop.Unset(&c.login.timer)
		c.p.dropProof(c)
		c.p.dropLookup(c)
		c.dropHandshake()
	}
	c.uncountPin()
	c.names.Clear()
	c.gather, c.gathers = nil, 0
	if c.key != (cancelKey{}) {
		delete(c.p.keys, c.key)
		c.key = cancelKey{}
	}
	if reason != "" && c.state != stateLinger && c.p.set.LogDisconnections {
		c.log().Info("client closed", "reason", reason)
	}
}

// end closes the connection and forgets the client, whatever state it is in.
func (c *client) end(reason string) {
	if c.state == stateEnded {
		return
	}
	c.forget(reason)
	c.abandon()
	c.state = stateEnded
	if c.pooled != nil {
		c.p.pools.Disconnect(c.p.now(), &c.pc)
	}
	c.p.loop.Buffers.Return(c.in)
	c.p.loop.Buffers.Return(c.out)
	c.in, c.out = nil, nil
	c.conn.Close()
	c.p.remove(c)
}

func (c *client) counters() *Counters { return &c.p.counters }

// log names the client in every line about it.
func (c *client) log() *slog.Logger {
	db, user := "(nodb)", "(nouser)"
	if c.pooled != nil {
		db, user = c.pooled.route.Database, c.pooled.route.User
	} else if c.login != nil && c.login.startup.User != "" {
		db, user = c.login.startup.Database, c.login.startup.User
	}
	from := "unix"
	if !c.isUnix {
		from = c.addr.String()
	}
	return c.p.log.With("database", db, "user", user, "client", from, "client_id", c.id)
}
