package proxy

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// SessionState is what becomes of what clients leave in their sessions, outside session mode.
type SessionState uint8

const (
	// StatePin keeps parameters, and keeps a client at its server connection while it has objects there.
	StatePin SessionState = iota
	// StateTrack keeps parameters and drops objects at the end of the transaction.
	StateTrack
	// StatePgBouncer keeps the parameters that servers report, and nothing else.
	StatePgBouncer
)

// longPiece is how much of the piece before is read again with each piece of a text that is relayed as it comes, in bytes.
const longPiece = 256

// sessionState is what a client has done to its session since that was looked at last. Most clients have none.
type sessionState struct {
	touched session.Effects
	unnamed session.Effects // of the unnamed prepared statement
	pins    session.Effect  // what keeps the client at its server connection
	counted bool            // among the pinned of its pool, or about to be
	shape   string          // the text that did it, without its literals
	failed  bool            // the client was told an error since touched is not empty
	refused int             // statements, in the transaction under way
	tail    []byte          // end of the text that is being relayed
	into    *session.Effects
}

// unclear says that the server must be asked what the client has left there.
func (c *client) unclear() bool {
	st := c.session
	if st == nil {
		return false
	}
	e := st.touched.Effect
	if e&(session.Unclear&^session.SetsParameters) != 0 || e&session.Frees != 0 && st.pins != 0 {
		return true
	}
	for _, p := range st.touched.Parameters {
		if (!p.Local || st.failed) && !c.reported(p.Name) {
			return true
		}
	}
	return false
}

// reported: the server tells by itself when the parameter changes.
func (c *client) reported(name string) bool {
	canonical, ok := c.p.tracked.Canonical(name)
	if ok && c.server != nil {
		_, ok = c.server.reports.Get(canonical)
	}
	return ok
}

// reader tells what the client's texts do to its session; nil when nobody wants to know.
func (c *client) reader() *session.Reader {
	if c.pooled.route.Pool.Mode == pool.Session || c.p.set.SessionState == StatePgBouncer {
		return nil
	}
	return c.p.set.Reader
}

func (c *client) needSession() *sessionState {
	if c.session == nil {
		c.session = &sessionState{}
	}
	return c.session
}

// touch records what a statement does to the session when it is carried out.
func (c *client) touch(e *session.Effects, text []byte) {
	if e.Effect == 0 {
		return
	}
	st := c.needSession()
	if st.shape == "" && text != nil && e.Effect&(session.Objects|session.Opaque|session.SetsUnknown) != 0 {
		st.shape = session.Shape(text)
	}
	st.touched.Add(*e)
	if e.Effect&session.Objects != 0 {
		c.countPin()
	}
}

// countPin takes a place among the pinned clients of the pool. It is given back if the client turns out not to be one.
func (c *client) countPin() {
	if st := c.session; !st.counted && c.p.set.SessionState == StatePin {
		st.counted = true
		c.pooled.pinned++
	}
}

func (c *client) uncountPin() {
	if st := c.session; st != nil && st.counted {
		st.counted = false
		c.pooled.pinned--
	}
}

// maxPinned is how many clients of a pool may keep a server connection for themselves: half of them, rounded up.
func (pl *pooled) maxPinned() int {
	if pl.route.Pool.Size == 0 {
		return 1 << 30
	}
	return (pl.route.Pool.Size + 1) / 2
}

// pinRefused: the text would keep its client at a server connection, and too many are kept already.
func (c *client) pinRefused(e *session.Effects) bool {
	if e.Effect&session.Objects == 0 || c.p.set.SessionState != StatePin || c.pooled.pinned < c.pooled.maxPinned() {
		return false
	}
	return c.session == nil || !c.session.counted
}

// refusedText takes the place of a text that is refused. PostgreSQL does not know it, whatever state the transaction is
// in, and its error is given another wording on the way back: so nobody has to guess what state the session is in then.
const refusedText = "pgberth refuses this statement"

// refusal is what the client reads of a refused statement.
func (c *client) refusalOfPin() (code, message string) {
	return "53400", fmt.Sprintf("too many clients keep a server connection for themselves (%d of a pool of %d): "+
		"end the transaction, or use a pool in session mode for statements that leave objects in the session",
		c.pooled.pinned, c.pooled.route.Pool.Size)
}

// reworded is the error of a refused statement.
func (s *server) reworded(body []byte) []byte {
	byName := bytes.Contains(body, []byte(refusedText))
	byFirstWord := bytes.Contains(body, []byte("C42601\x00")) && bytes.Contains(body, []byte("pgberth"))
	if !s.refused() || !byName && !byFirstWord {
		return nil
	}
	code, message := s.client.refusalOfPin()
	return pgwire.AppendError(nil, pgwire.Error, code, message)
}

// refused: a statement of the client's was, and its error may be about to come.
func (s *server) refused() bool {
	return s.client != nil && s.client.session != nil && s.client.session.refused > 0
}

// refusedBind sends a Bind for a statement that does not exist in the place of one that is refused. It returns false if
// that of the text is not.
func (c *client) refusedBind(b *batch, buf []byte, off, size, from, to int, e *session.Effects) bool {
	if !c.pinRefused(e) {
		return false
	}
	c.needSession().refused++
	c.pooled.counts.PinsRefused++
	msg := buf[off:min(off+size, len(buf))]
	b.keep(buf, off)
	b.from = off + len(msg)
	b.out = pgwire.AppendRenamed(b.out, pgwire.Bind, size, msg[pgwire.HeaderSize:], from, to, refusedText)
	_ = c.server.link.Sent(pgwire.Bind) // always allowed
	return true
}

// readText looks at the text of a Query or a Parse at buf[off:], of which take bytes of size are there. It returns true
// when the message has been replaced.
func (c *client) readText(b *batch, buf []byte, off, take, size int, typ byte) (replaced bool) {
	r := c.reader()
	if r == nil {
		return false
	}
	body := buf[off+pgwire.HeaderSize : off+take]
	text, named := body, false
	if typ == pgwire.Parse {
		name, rest, ok := pgwire.NextString(body)
		if !ok {
			return false // PostgreSQL has no such message either
		}
		text, named = rest, name != ""
		if named && c.server.link.Tracks() {
			return false // read when it is registered
		}
	}
	if take == size {
		text = untilNUL(text)
	}
	e := r.Read(text)
	if take == size && (typ == pgwire.Query || named) && c.pinRefused(&e) { // an unnamed one is refused when it is used
		c.refuse(b, buf, off, size, typ)
		return true
	}
	switch {
	case typ == pgwire.Query || named:
		c.touch(&e, text)
	case e.Effect != 0 || c.session != nil:
		c.needSession().unnamed = e
	}
	if take < size {
		st := c.needSession()
		st.into = &st.touched
		if typ == pgwire.Parse && !named {
			st.into = &st.unnamed
		}
		st.tail = append(st.tail[:0], text[max(0, len(text)-longPiece):]...)
	}
	return false
}

// readOn looks at a further piece of a text.
func (c *client) readOn(piece []byte) {
	st := c.session
	if st == nil || st.into == nil {
		return
	}
	r := c.reader()
	if r == nil {
		return
	}
	text := append(st.tail, piece...)
	e := r.Read(text)
	st.into.Add(e)
	if e.Effect&session.Objects != 0 {
		c.countPin()
	}
	if c.remain == 0 {
		st.into, st.tail = nil, nil
		return
	}
	st.tail = append([]byte(nil), text[max(0, len(text)-longPiece):]...)
}

// refuse puts a text in the place of another that PostgreSQL refuses.
func (c *client) refuse(b *batch, buf []byte, off, size int, typ byte) {
	c.needSession().refused++
	c.pooled.counts.PinsRefused++
	b.keep(buf, off)
	b.from = off + size
	if typ == pgwire.Query {
		b.out = pgwire.AppendQuery(b.out, refusedText)
	} else {
		b.out = pgwire.AppendParse(b.out, "", refusedText+"\x00\x00\x00")
	}
}

// used records what a Bind does to the session: statement is nil for the unnamed one.
func (c *client) used(statement *session.Statement) {
	if statement != nil {
		e := statement.Effects()
		switch {
		case e.Effect == 0:
		case c.session == nil || c.session.shape == "":
			c.touch(e, []byte(statement.Body()))
		default:
			c.touch(e, nil)
		}
		return
	}
	if c.session != nil {
		c.touch(&c.session.unnamed, nil)
	}
}

// over: the client's transaction is over, and nothing of it is under way.
func (c *client) over() {
	s, st := c.server, c.session
	if st == nil {
		c.detach()
		return
	}
	st.refused = 0
	if c.unclear() {
		if c.p.set.ProbeOff && st.touched.Effect&(session.SetsParameters|session.ResetsAll) == 0 {
			c.leaves(st.pins|st.touched.Effect&session.Objects, true)
			return
		}
		s.probe(c)
		return
	}
	c.settled()
}

// settled: it is known what the client has left in its session.
func (c *client) settled() {
	st := c.session
	for _, p := range st.touched.Parameters {
		if p.Local && !st.failed {
			c.empty(p.Name)
		}
		if canonical, ok := c.p.tracked.Canonical(p.Name); ok && p.Reset {
			c.restart(canonical)
		}
	}
	st.touched, st.failed = session.Effects{}, false
	if st.pins == 0 {
		c.unpin()
		c.detach()
		return
	}
	c.counted()
}

// empty: a custom parameter was set for a transaction. It exists from now on, with no value.
func (c *client) empty(name string) {
	s := c.server
	if _, ok := s.params.Get(name); !ok {
		s.params = s.params.With(name, "")
	}
	if _, ok := c.params.Get(name); !ok {
		c.params = c.params.With(name, "")
	}
}

// restart: a parameter that the server reports was reset. It is what the client's session began with then, not what the
// server connection did.
func (c *client) restart(name string) {
	s := c.server
	now, _ := c.params.Get(name)
	serverBegan, ok := s.reports.Get(name)
	began, asked := c.began.Get(name)
	if ok && asked && now == serverBegan && began != now {
		c.params = c.params.With(name, began)
		c.write(pgwire.AppendParameterStatus(nil, name, began))
	}
}

// pin keeps the client at its server connection.
func (c *client) pin(why session.Effect) {
	st := c.session
	if fresh := why &^ st.pins; fresh != 0 {
		for i, n := range session.PinReasons {
			if fresh&n.Effect != 0 {
				c.pooled.counts.Pins[i]++
			}
		}
		c.pooled.logPin(c, fresh)
	}
	st.pins = why
	c.pc.Pinned = true
	c.countPin()
}

func (c *client) unpin() {
	c.uncountPin()
	if st := c.session; st != nil {
		st.pins, st.shape = 0, ""
	}
	c.pc.Pinned = false
}

// maxShapes bounds the memory of what has been logged.
const maxShapes = 1000

// logPin tells once of each kind of statement why its client is kept at its server connection.
func (pl *pooled) logPin(c *client, why session.Effect) {
	shape := c.session.shape
	if pl.shapes == nil {
		pl.shapes = map[string]struct{}{}
	}
	if _, told := pl.shapes[shape]; told || len(pl.shapes) >= maxShapes {
		return
	}
	pl.shapes[shape] = struct{}{}
	c.log().Info("client keeps its server connection", "reasons", strings.Join(why.Reasons(), ","), "statement", shape)
}

// foreign: the server connection has a custom parameter that the client has not. It cannot be taken away.
func (c *client) foreign(s *server) bool {
	if c.params == s.params {
		return false
	}
	for _, name := range s.params.Surplus(c.params) {
		if session.Custom(name) {
			return true
		}
	}
	return false
}

// exchange gives up a server connection that has what the client must not see, and waits for another.
func (c *client) exchange(s *server) {
	c.p.pools.Exchange(c.p.now(), s.pb, pool.ForeignParameter)
	c.state = stateWaiting
	s.close(pool.ForeignParameter.String())
}

func untilNUL(b []byte) []byte {
	for i, x := range b {
		if x == 0 {
			return b[:i]
		}
	}
	return b
}

// opaque is what a function called by its number may do.
var opaque = session.Effects{Effect: session.Opaque}
