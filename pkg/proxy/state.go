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
	// unnamedText is its text, if it may be refused.
	unnamedText string
	pins        session.Effect // what keeps the client at its server connection
	counted     bool           // among the pinned of its pool
	shape       string         // the text that did it, without its literals
	unknown     bool           // a parameter is set whose name is not known
	unsure      bool           // the server could not be asked
	checked     bool           // it has been asked since the client said something
	refused     int            // statements, in the transaction under way
	tail        []byte         // end of the text that is being relayed
	into        *session.Effects
}

// unclear says that the server must be asked what the client has left there.
func (c *client) unclear() bool {
	st := c.session
	if st == nil || st.checked {
		return false
	}
	e := st.touched.Effect
	if e&(session.Unclear&^session.SetsParameters) != 0 || e&session.Frees != 0 && st.pins != 0 || st.unsure || c.createsTemporary() {
		return true
	}
	for _, p := range st.touched.Parameters {
		_, has := c.server.params.Get(p.Name)
		if (!p.Local || !has) && !c.reported(p.Name) {
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
}

// createsTemporary: what the client creates is temporary, whether its texts say so or not.
func (c *client) createsTemporary() bool {
	path, ok := c.params.Get("search_path")
	return ok && strings.Contains(path, "pg_temp")
}

// countPin takes a place among the pinned clients of the pool.
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

// mostPinned is how many they may become when several make objects at once, before any of them was known to be pinned.
func (pl *pooled) mostPinned() int { return max(pl.maxPinned(), pl.route.Pool.Size-1) }

// pinRefused: the text would keep its client at a server connection, and too many are kept already.
func (c *client) pinRefused(e *session.Effects, text []byte) bool {
	const pins = session.Objects | session.SetsUnknown
	if e.Effect&pins == 0 || c.reader() == nil || c.p.set.SessionState != StatePin || c.pooled.pinned < c.pooled.maxPinned() ||
		c.session != nil && c.session.pins != 0 {
		return false
	}
	// What stands in literals and comments is no reason to refuse it.
	return c.reader().Read(session.Bare(text)).Effect&pins != 0
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
func (c *client) refusedBind(b *batch, buf []byte, off, size, from, to int, e *session.Effects, text string) bool {
	if e.Effect&(session.Objects|session.SetsUnknown) == 0 || !c.pinRefused(e, []byte(text)) {
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
		if ok {
			text = rest
		}
		named = !ok || name != ""
		if ok && named && c.server.link.Tracks() {
			return false // read when it is registered
		}
	}
	if take == size {
		text = untilNUL(text)
	}
	e := r.Read(text)
	if take == size && (typ == pgwire.Query || named) && c.pinRefused(&e, text) { // an unnamed one is refused when it is used
		c.refuse(b, buf, off, size, typ)
		return true
	}
	switch {
	case typ == pgwire.Query || named:
		c.touch(&e, text)
	case c.server.link.Ignores():
	case e.Effect != 0 || c.session != nil:
		st := c.needSession()
		st.unnamed = e
		st.unnamedText = ""
		if e.Effect&(session.Objects|session.SetsUnknown) != 0 && take == size {
			st.unnamedText = string(text)
		}
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
	st.into.Add(r.ReadOn(st.into.Effect, text))
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
	if c.reader() == nil {
		return
	}
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
			c.leaves(st.pins|st.touched.Effect&(session.Objects|session.SetsUnknown), true)
			return
		}
		if s.cancels > 0 {
			s.task = taskPause // it would hit the question
			return
		}
		s.probe(c, false)
		return
	}
	c.settled()
}

// settled: it is known what the client has left in its session.
func (c *client) settled() {
	st := c.session
	for _, p := range st.touched.Parameters {
		if canonical, ok := c.p.tracked.Canonical(p.Name); ok && p.Reset {
			c.restart(canonical)
		}
	}
	st.touched = session.Effects{}
	if st.pins == 0 {
		if s := c.server; s.spoiled {
			c.letGo()
			return
		}
		c.unpin()
		c.detach()
		return
	}
	c.counted()
	if s := c.server; c.params != s.params { // it stays, so it has to be as the client was told
		c.held = true
		s.adapt(c.params)
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

// foreign is what a statement may do whose text nobody knows.
var foreign = session.Effects{Effect: session.Opaque | session.Foreign}

// opaque is what a function called by its number may do.
var opaque = session.Effects{Effect: session.Opaque | session.Body}
