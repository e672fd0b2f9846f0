package proxy

import (
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/session"
)

// relay forwards whole ranges of buf to the server and returns what must wait: the start of a message header, a message
// that needs a server connection while there is none, or all of it while the server side prepares.
func (c *client) relay(buf []byte) (rest []byte) {
	if c.gathers > 0 {
		var done bool
		if buf, done = c.gathered(buf); !done {
			return nil
		}
		if c.server != nil && c.server.task != taskNone {
			return buf
		}
	}
	off := min(c.remain, len(buf))
	c.remain -= off
	if off > 0 && c.session != nil {
		c.readOn(buf[:off])
	}
	if c.server == nil {
		buf, off = buf[off:], 0 // the end of a dropped message
	}
	b := c.p.assemble()
	for off < len(buf) {
		typ, size, ok, err := pgwire.Header(buf[off:], c.p.set.MaxPacketSize)
		if err != nil {
			c.violation(b.bytes(buf, off), err)
			return nil
		}
		if !ok {
			break
		}
		if typ == pgwire.Terminate {
			c.sends(&b, buf, off)
			c.gone(false)
			return nil
		}
		if c.server == nil {
			switch typ {
			case pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail:
				// The rest of a COPY that failed: the server would ignore it.
				take := min(size, len(buf)-off)
				c.remain = size - take
				buf, off = buf[off+take:], 0
				continue
			case pgwire.Query, pgwire.Parse, pgwire.Bind, pgwire.Describe, pgwire.Execute, pgwire.Close, pgwire.Sync,
				pgwire.Flush, pgwire.FunctionCall:
			default:
				c.violation(nil, &session.UnexpectedError{From: "client", Type: typ})
				return nil
			}
			if size > len(buf)-off && len(buf)-off < holdSize {
				break
			}
			if typ == pgwire.Close && c.closeUnlinked(buf[off:], size) {
				buf, off = buf[off+size:], 0
				continue
			}
			if !c.acquire() {
				return buf[off:]
			}
		}
		c.held = false
		if c.session != nil {
			c.session.checked = false
		}
		if c.asked == 0 { // from its first byte: who has a server connection and says no more has its time run too
			c.asked = c.p.now()
			c.pooled.counts.Queries++
			if c.started == 0 {
				c.started = c.asked
			}
		}
		take := min(size, len(buf)-off)
		done := false
		if typ == pgwire.Query || typ == pgwire.Parse {
			if take < size && size <= holdSize && c.reader() != nil {
				break // whole, it can still be refused
			}
			if c.readText(&b, buf, off, take, size, typ) {
				if err := c.server.link.Sent(typ); err != nil {
					c.violation(b.bytes(buf, off), err)
					return nil
				}
				off += take
				continue
			}
		}
		if typ == pgwire.FunctionCall && c.reader() != nil {
			c.touch(&opaque, nil)
		}
		if c.server.link.Tracks() {
			c.record(typ, buf[off:off+take], size)
			switch typ {
			case pgwire.Parse, pgwire.Bind, pgwire.Describe, pgwire.Close:
				taken, plain, err := c.named(&b, buf, off, typ, size)
				if err != nil {
					c.excess(b.bytes(buf, off), err)
					return nil
				}
				if done = !plain; done && taken == 0 {
					if !c.stalled && typ == pgwire.Parse && size > wholeMessage && size <= maxStatementText && nameThere(buf[off:]) {
						// Before what is told to the client has it lose its server connection.
						c.gather, c.gathers = append(make([]byte, 0, size), buf[off:]...), size
						c.sends(&b, buf, off)
						return nil
					}
					c.sends(&b, buf, off)
					return buf[off:]
				}
			case pgwire.Query:
				b.parsed = nil // it drops the unnamed statement
				c.names.KeepUnnamed(nil)
				done = c.deallocate(&b, buf, off, size)
			}
		}
		if !done {
			if err := c.server.link.Sent(typ); err != nil {
				c.violation(b.bytes(buf, off), err)
				return nil
			}
		}
		off += take
		c.remain = size - take
	}
	c.sends(&b, buf, off)
	return buf[off:]
}

// send forwards bytes to the linked server.
func (c *client) send(b []byte) {
	if len(b) > 0 && c.server != nil {
		c.server.write(b)
	}
}

// acquire gets a server connection now and true, or queues and false. On true the caller may go on in the same buffer.
func (c *client) acquire() bool {
	c.started = c.p.now()
	c.asked = 0
	c.pc.Like = c.params
	if code, why, failing := c.p.failsFast(c.pooled); failing {
		c.counters().WaitFailures++
		c.fail(code, why)
		c.linger("server_login_retry")
		return false
	}
	c.p.pools.Acquire(c.started, &c.pc)
	b := c.pc.Backend()
	for b != nil && c.foreign(b.Ref.(*server)) {
		c.exchange(b.Ref.(*server))
		b = c.pc.Backend()
	}
	if b == nil {
		c.state = stateWaiting
		c.notified = false
		c.p.timed(c.p.set.QueryWaitNotify)
		return false
	}
	s := b.Ref.(*server)
	c.attach(s)
	return s.task == taskNone
}

// linked: the pool has found a server connection for a client that waited for it.
func (c *client) linked(s *server) {
	if c.state != stateLogin && c.foreign(s) {
		c.exchange(s)
		return
	}
	c.pooled.counts.WaitTime += c.p.now() - c.started
	c.attach(s)
	if c.state == stateLogin {
		c.welcomed()
		return
	}
	c.pump()
}

// attach pairs the two. If the server connection is in another state than the client's session, the difference is set
// first and the client is held until that is done.
func (c *client) attach(s *server) {
	c.server, s.client = s, c
	s.fatal = false
	c.stalled = false
	s.link.Serve(&c.names)
	if c.state == stateLogin {
		return
	}
	c.state = stateLinked
	c.pooled.counts.Assignments++
	if c.held = c.params != s.params; c.held {
		s.adapt(c.params)
	}
}

// answered: nothing is outstanding.
func (c *client) answered() {
	if c.asked != 0 {
		c.quiet = c.p.now()
		c.pooled.counts.QueryTime += c.quiet - c.asked
		c.asked = 0
	}
}

// detach gives the server connection back: the transaction is over and everything is flushed.
func (c *client) detach() {
	s := c.server
	c.server, s.client = nil, nil
	s.link.Serve(nil)
	c.counted()
	if c.state == stateLinked {
		c.state = stateIdle
	}
	s.release()
}

func (c *client) counted() {
	if c.started != 0 && c.pooled != nil {
		c.pooled.counts.Transactions++
		c.pooled.counts.TransactionTime += c.p.now() - c.started
		c.started = 0
	}
}

// nameThere tells whether the name in the beginning of a Parse is there.
func nameThere(msg []byte) bool {
	_, _, ok := pgwire.StatementName(pgwire.Parse, msg[pgwire.HeaderSize:])
	return ok
}
