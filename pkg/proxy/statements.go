package proxy

import (
	"bytes"
	"fmt"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

const (
	// maxStatementText is the longest Parse of a named statement, in bytes: it is kept for other server connections.
	maxStatementText = 1 << 20
	// maxNamedBytes is how much the names and texts of a client's prepared statements may take together.
	maxNamedBytes = 16 << 20
	// maxNamedPending is how many requests about named statements may wait for an answer of the server's.
	maxNamedPending = 1 << 14
	// maxLastParse is the longest text of an unnamed statement, in bytes, that a later transaction may use.
	maxLastParse = 16 << 10
	// namesPerPrepared is how many names a client may give for each statement that a server connection may have.
	namesPerPrepared = 10
	// longestTag is the longest CommandComplete, in bytes, that is looked at for the same.
	longestTag = 32
)

// batch is what one read comes to: ranges of its bytes, and what stands in the place of others.
type batch struct {
	out  []byte // in a buffer of the loop's, once something was replaced
	from int    // where in the read the next range begins
	told bool   // the pooler has answered something in the server's place
	// parsed is what follows the empty name in a Parse that no Bind has used yet, part of the read.
	parsed []byte
}

// keep adds the range up to off.
func (b *batch) keep(buf []byte, off int) {
	b.out = append(b.out, buf[b.from:off]...)
	b.from = off
}

// prepares puts in what has to precede a message that names a prepared statement.
func (b *batch) prepares(n session.Naming) {
	if n.Evict != nil {
		b.out = pgwire.AppendCloseStatement(b.out, n.Evict.Name())
	}
	if n.Prepare != nil {
		b.out = pgwire.AppendParse(b.out, n.Prepare.Name(), n.Prepare.Body())
	}
}

// bytes are all of it up to off: mostly the read itself.
func (b *batch) bytes(buf []byte, off int) []byte {
	if len(b.out) == 0 {
		return buf[b.from:off]
	}
	b.keep(buf, off)
	return b.out
}

// assemble and assembled give and take the buffer for what clients say, answer and answered that for what servers say: one
// may be under way while the other is.
func (p *Proxy) assemble() batch { return batch{out: p.assembly[:0]} }

func (p *Proxy) assembled(b *batch) { p.assembly = kept(b.out) }

func (p *Proxy) answer() batch { return batch{out: p.answers[:0]} }

func (p *Proxy) answered(b *batch) { p.answers = kept(b.out) }

// kept is a buffer for the next time, unless it has grown out of proportion.
func kept(buf []byte) []byte {
	if cap(buf) > 2*eventloop.ScratchSize {
		return nil
	}
	return buf[:0]
}

// follows says whether the names of prepared statements are followed in this pool: elsewhere than in session mode a
// client's next Bind may meet another server connection than its Parse.
func (p *Proxy) follows(r *Route) bool { return p.set.MaxPrepared > 0 && r.Pool.Mode != pool.Session }

// planned are the parameters of the client's session under which a statement's text is read.
func (c *client) planned() session.Params {
	if c.plannedOf != c.params {
		c.plannedOf, c.plannedAs = c.params, c.params.Planned()
	}
	return c.plannedAs
}

// named handles a Parse, Bind, Describe or Close at buf[off:], of which all of size may not be there yet. It puts into b
// what goes to the server and returns how many bytes it took; 0 says that more are needed. A plain message names no
// prepared statement: it is neither taken nor recorded.
func (c *client) named(b *batch, buf []byte, off int, typ byte, size int) (taken int, plain bool, err error) {
	msg := buf[off:min(off+size, len(buf))]
	whole := len(msg) == size
	body := msg[pgwire.HeaderSize:]
	from, to, ok := pgwire.StatementName(typ, body)
	switch {
	case !ok && whole:
		return 0, true, nil // PostgreSQL will say what it thinks of that
	case !ok && len(msg) >= holdSize:
		return 0, false, fmt.Errorf("names of portal and prepared statement in message %s take more than %d bytes", pgwire.TypeName(typ), holdSize)
	case !ok:
		return 0, false, nil
	case from == to:
		if typ == pgwire.Bind && c.session != nil && c.refusedBind(b, buf, off, size, from, to, &c.session.unnamed, c.session.unnamedText) {
			return len(msg), false, nil
		}
		return c.unnamed(b, buf, off, typ, msg, whole)
	}
	if typ == pgwire.Close && pgwire.HeaderSize+to+1 != size {
		return 0, true, nil // PostgreSQL refuses it; taken apart, the rest of it would reach the server as it is
	}
	link := &c.server.link
	if link.Unsure() {
		c.stalled = true
		return 0, false, nil
	}
	if link.Pending() >= maxNamedPending {
		return 0, false, fmt.Errorf("more than %d requests about prepared statements in flight", maxNamedPending)
	}
	name := body[from:to]
	var n session.Naming
	switch typ {
	case pgwire.Parse:
		switch {
		case size > maxStatementText:
			return 0, false, fmt.Errorf("prepared statement of %d bytes, allowed are %d", size, maxStatementText)
		case !whole:
			return 0, false, nil
		case c.names.Len() >= namesPerPrepared*link.Limit():
			return 0, false, fmt.Errorf("more than %d prepared statements in one session (%d times max_prepared_statements)",
				c.names.Len(), namesPerPrepared)
		case c.names.Size()+len(body) > maxNamedBytes:
			return 0, false, fmt.Errorf("prepared statements of more than %d bytes in one session", maxNamedBytes)
		}
		n = link.Parse(string(name), body[to+1:], c.planned())
	case pgwire.Close:
		n = link.CloseStatement(name)
	default:
		if typ == pgwire.Bind {
			if s := c.names.Of(name); s != nil && c.refusedBind(b, buf, off, size, from, to, s.Effects(), s.Body()) {
				return len(msg), false, nil
			}
		}
		n = link.Use(typ, name, c.planned())
		switch {
		case typ != pgwire.Bind:
		case n.Statement != nil:
			c.used(n.Statement)
		case c.reader() != nil && !link.Ignores():
			c.touch(&foreign, nil) // by SQL's PREPARE, if at all
		}
	}
	b.keep(buf, off)
	b.from = off + len(msg)
	b.prepares(n)
	if !n.Local {
		b.out = pgwire.AppendRenamed(b.out, typ, size, body, from, to, n.Name)
	}
	return len(msg), false, nil
}

// unnamed handles a message about the unnamed statement, like named; one about a portal is plain.
func (c *client) unnamed(b *batch, buf []byte, off int, typ byte, msg []byte, whole bool) (taken int, plain bool, err error) {
	body, link := msg[pgwire.HeaderSize:], &c.server.link
	portal := (typ == pgwire.Describe || typ == pgwire.Close) && body[0] != 'S'
	switch {
	case portal:
		return 0, true, nil
	case typ == pgwire.Parse, typ == pgwire.Close:
		if typ == pgwire.Parse && whole {
			dealt, waits := c.deallocates(b, buf, off, msg)
			if waits {
				return 0, false, nil
			}
			if dealt {
				b.parsed = nil
				return len(msg), false, nil
			}
		}
		link.SetUnnamed(typ)
		b.parsed = nil
		if typ == pgwire.Parse && whole && !link.Ignores() {
			b.parsed = body[1:]
		}
		return len(msg), false, nil
	case link.UnsureUnnamed():
		c.stalled = true
		return 0, false, nil
	}
	u := link.UseUnnamed(typ)
	if typ == pgwire.Bind {
		b.parsed = nil
		c.used(nil)
	}
	if u.Prepare != nil || u.Close {
		b.keep(buf, off)
	}
	if u.Prepare != nil {
		b.out = pgwire.AppendParse(b.out, "", string(u.Prepare))
	} else if u.Close {
		b.out = pgwire.AppendCloseStatement(b.out, "")
	}
	return len(msg), false, nil
}

// gathered collects a Parse that is larger than what is read at once. It returns what is behind it, and true when it is
// whole and has been handled.
func (c *client) gathered(buf []byte) (rest []byte, done bool) {
	n := min(c.gathers-len(c.gather), len(buf))
	c.gather = append(c.gather, buf[:n]...)
	if len(c.gather) < c.gathers {
		return nil, false
	}
	whole := c.gather
	c.gather, c.gathers = nil, 0
	b := c.p.assemble()
	if _, _, err := c.named(&b, whole, 0, pgwire.Parse, len(whole)); err != nil {
		c.excess(nil, err)
		return nil, false
	}
	c.sends(&b, whole, len(whole))
	return buf[n:], c.state == stateLinked || c.state == stateIdle
}

// sends forwards a batch up to off, then says what the pooler itself has to answer if nothing of the server's comes first.
func (c *client) sends(b *batch, buf []byte, off int) {
	if b.parsed != nil && len(b.parsed) <= maxLastParse {
		c.names.KeepUnnamed(b.parsed)
	}
	c.send(b.bytes(buf, off))
	c.p.assembled(b)
	s := c.server
	if s == nil {
		return
	}
	if s.remain == 0 { // else in the middle of a message; what comes next brings them along
		if out := s.locals(nil); len(out) > 0 {
			c.write(out)
			b.told = true
		}
	}
	if b.told {
		s.progress()
	}
}

// excess ends a client that asks for more than the pooler keeps for one.
func (c *client) excess(before []byte, err error) {
	c.send(before)
	c.fail("54000", err.Error())
	c.abandon()
	c.linger(err.Error())
}

// closeUnlinked handles a Close of a prepared statement without a server connection: only our books know it.
func (c *client) closeUnlinked(msg []byte, size int) bool {
	if len(msg) < size || !c.p.follows(&c.pooled.route) {
		return false
	}
	body := msg[pgwire.HeaderSize:size]
	from, to, ok := pgwire.StatementName(pgwire.Close, body)
	if !ok || from == to || pgwire.HeaderSize+to+1 != size {
		return false
	}
	c.names.Forget(body[from:to])
	c.write(pgwire.AppendEmpty(nil, pgwire.CloseComplete))
	return true
}

// locals appends what the pooler has to answer in the server's place now.
func (s *server) locals(out []byte) []byte {
	for {
		typ, ok := s.link.Local()
		if !ok {
			return out
		}
		out = pgwire.AppendEmpty(out, typ)
	}
}

// localsBefore puts them in front of what comes at off.
func (s *server) localsBefore(b *batch, buf []byte, off int) {
	for {
		typ, ok := s.link.Local()
		if !ok {
			return
		}
		if s.swallows() {
			continue
		}
		b.keep(buf, off)
		b.out = pgwire.AppendEmpty(b.out, typ)
	}
}

// translated is an ErrorResponse with the client's own names of its prepared statements; nil when it names none.
func (s *server) translated(body []byte) []byte {
	if s.client == nil || !bytes.Contains(body, []byte(session.StatementPrefix)) {
		return nil
	}
	return pgwire.AppendRenamed(nil, pgwire.ErrorResponse, pgwire.HeaderSize+len(body), body, 0, len(body), s.link.Translate(string(body)))
}

// purged: a command's tag says that the server has dropped all prepared statements.
func purged(body []byte) bool {
	return string(body) == "DEALLOCATE ALL\x00" || string(body) == "DISCARD ALL\x00"
}
