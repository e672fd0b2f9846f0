package proxy

import (
	"bytes"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// maxReplay is the longest batch that is said again, in bytes.
const maxReplay = 16 << 10

// replay is a batch that uses a prepared statement outside a transaction, as the client has said it. If the statement's
// result is not what it was any more ("cached plan must not change result type"), it is prepared again and the batch is
// said again.
type replay struct {
	said      []byte
	state     replayState
	describes bool // the client asks in the batch what the result is
}

type replayState uint8

const (
	replayNone  replayState = iota // nothing, or the server has answered something
	replayOpen                     // begun
	replayWhole                    // up to its Sync, and nothing after it
)

// record follows what the client says.
func (c *client) record(typ byte, msg []byte, size int) {
	s := c.server
	r := &s.replay
	whole := len(msg) == size
	switch {
	case c.repeating:
	case typ == pgwire.Bind && whole && size <= maxReplay && s.link.Settled() && s.link.Status() == pgwire.StatusIdle:
		r.said = append(r.said[:0], msg...)
		r.state, r.describes = replayOpen, false
		return
	case r.state == replayOpen && whole && len(r.said)+size <= maxReplay:
		portal := size > pgwire.HeaderSize && msg[pgwire.HeaderSize] == 'P'
		switch {
		case typ == pgwire.Execute, typ == pgwire.Close && portal:
		case typ == pgwire.Describe && portal:
			r.describes = true
		case typ == pgwire.Sync:
			r.state = replayWhole
		default:
			r.state = replayNone
			return
		}
		r.said = append(r.said, msg...)
		return
	}
	r.state = replayNone
}

// repairs looks at an error, and returns true if the client need not know of it. The statement is prepared again before
// anybody uses it in any case: PostgreSQL would say the same for ever. A client that has been told what the result is, and
// does not ask again, gets the error as it would from PostgreSQL: it would not understand the rows.
func (s *server) repairs(body []byte) bool {
	if !bytes.Contains(body, []byte("C0A000\x00")) || !bytes.Contains(body, []byte("RRevalidateCachedQuery\x00")) {
		return false
	}
	statement, described := s.link.Failing()
	if statement == nil {
		return false
	}
	for other := range s.p.servers { // on each of them it would fail once
		if other.pooled == s.pooled {
			other.link.Doubt(statement)
		}
	}
	if s.replay.state != replayWhole || described && !s.replay.describes {
		return false
	}
	s.replay.state = replayNone
	s.task = taskRepeat
	s.pooled.counts.Repairs++
	return true
}

// repeat says the batch again.
func (c *client) repeat() {
	s := c.server
	said := s.replay.said
	s.replay.said = nil
	c.repeating = true
	rest := c.relay(said)
	c.repeating = false
	if c.server == s && !s.closed {
		s.replay.said = said
	}
	if len(rest) > 0 && c.state != stateEnded {
		in := append(append(c.p.loop.Buffers.Lend(len(rest)+len(c.in)), rest...), c.in...)
		c.p.loop.Buffers.Return(c.in)
		c.in = in
	}
	c.p.loop.Again(&c.conn.Conn)
}
