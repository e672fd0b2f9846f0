package proxy

import (
	"slices"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// objectsQuery asks for what only the session has. Names are qualified: the client's search_path holds.
const objectsQuery = "SELECT" +
	" EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())," +
	" CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) 0 THEN false ELSE" +
	" EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())" +
	" OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())" +
	" OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END," +
	" EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)," +
	" EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)," +
	" EXISTS (SELECT FROM pg_catalog.pg_listening_channels())," +
	" pg_catalog.current_setting('session_authorization')"

// objectsFound are the meanings of its columns; the last one is compared.
var objectsFound = [...]session.Effect{
	session.SessionLock, session.TempTable, session.SQLPrepared, session.HeldCursor, session.Listening,
}

// settingsQuery asks for every parameter that the session has set, as far as PostgreSQL lists it.
const settingsQuery = "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'"

// roleParameter is SET ROLE's. PostgreSQL does not list it, and its none is no value.
const roleParameter = "role"

// sticky are reasons to keep a client at its server connection that nobody can look up.
const sticky = session.Library | session.Function

// probe is a query of the pooler's own about what a client has left in its session.
type probe struct {
	again    bool     // it was asked before, and a cancel request hit the question
	objects  bool     // the first row begins with the columns of objectsQuery
	names    []string // further columns of the first row are the values of these parameters
	settings bool     // a second result lists all that PostgreSQL lists
	results  int      // complete

	row    []*string
	listed []pgwire.Parameter
	broken bool
}

// probe asks the server what the client has left there.
func (s *server) probe(c *client, again bool) {
	st := c.session
	e := st.touched.Effect
	if st.unsure {
		e |= session.Opaque | session.Body
	}
	asks := !s.p.set.ProbeOff
	pr := &probe{
		again:    again,
		objects:  asks && (e&(session.Unclear&^session.SetsParameters) != 0 || st.pins != 0 || c.createsTemporary()),
		settings: e&(session.Body|session.Foreign|session.ResetsAll|session.SetsUnknown) != 0 || e&session.Frees != 0 && st.pins != 0,
	}
	add := func(name string) {
		if canonical, ok := s.p.tracked.Canonical(name); ok {
			name = canonical
		}
		if _, told := s.reports.Get(name); !told && !slices.Contains(pr.names, name) {
			pr.names = append(pr.names, name)
		}
	}
	for _, p := range st.touched.Parameters {
		if _, has := s.params.Get(p.Name); !p.Local || !has {
			add(p.Name)
		}
	}
	if pr.settings || e&session.Opaque != 0 {
		// What functions set is not in the text. At least those that this pool is known to use are looked at.
		add(roleParameter)
		for _, name := range s.pooled.custom {
			add(name)
		}
		for _, kv := range s.params.All() {
			if session.Custom(kv.Name) {
				add(kv.Name)
			}
		}
	}
	var b strings.Builder
	if pr.objects {
		b.WriteString(objectsQuery)
	} else {
		b.WriteString("SELECT")
	}
	for i, name := range pr.names {
		if i > 0 || pr.objects {
			b.WriteByte(',')
		}
		b.WriteString(" pg_catalog.current_setting(")
		b.WriteString(session.Quote(name))
		b.WriteString(", true)")
	}
	if pr.settings {
		b.WriteByte(';')
		b.WriteString(settingsQuery)
	}
	s.probing = pr
	s.pooled.counts.Probes++
	s.run(taskProbe, b.String())
}

// answerTo takes a row of the answer.
func (pr *probe) take(typ byte, body []byte) {
	switch typ {
	case pgwire.CommandComplete:
		pr.results++
	case pgwire.DataRow:
		row, ok := pgwire.ReadRow(body)
		switch {
		case !ok, pr.results == 0 && pr.row != nil:
			pr.broken = true
		case pr.results == 0:
			pr.row = row
		case len(row) != 2 || row[0] == nil || row[1] == nil || len(pr.listed) > maxListed:
			pr.broken = true
		default:
			pr.listed = append(pr.listed, pgwire.Parameter{Name: *row[0], Value: *row[1]})
		}
	}
}

// maxListed bounds how many parameters of a session are kept, and maxStateBytes how much they and their values may take.
const (
	maxListed     = 500
	maxStateBytes = 64 << 10
)

// complete says that the answer is what was asked for.
func (pr *probe) complete() bool {
	want := len(pr.names)
	if pr.objects {
		want += len(objectsFound) + 1
	}
	return !pr.broken && len(pr.row) == want
}

// probed: the server has answered.
func (s *server) probed() {
	pr, c := s.probing, s.client
	s.probing = nil
	st := c.session
	if s.failed != nil && s.failed.Code == "57014" && !pr.again && s.link.Idle() { // the client's own late cancel request
		s.probe(c, true)
		return
	}
	if s.failed != nil || !pr.complete() || !s.link.Idle() {
		why := "the answer is not what was asked for"
		if s.failed != nil {
			why = s.failed.Message
		}
		c.log().Warn("cannot tell what a client left in its session, it keeps its server connection", "error", why)
		st.unsure, st.checked = true, true // it is asked again after the next transaction
		c.leaves(st.pins|session.SetsUnknown, false)
		return
	}
	values := pr.row
	st.checked = true
	found := st.pins & sticky
	st.unsure = false
	switch e := st.touched.Effect; {
	case e&session.SetsUnknown != 0:
		st.unknown = true
	case e&session.ResetsAll != 0 && st.unknown:
		// What it was is reset, but it is still there.
		st.unknown, s.spoiled = false, true
	}
	if st.unknown {
		found |= session.SetsUnknown
	}
	if pr.objects {
		for i, what := range objectsFound {
			if v := values[i]; v != nil && *v == "t" {
				found |= what
			}
		}
		if v := values[len(objectsFound)]; v == nil || *v != s.user {
			found |= session.Authorization
		}
		found |= st.touched.Effect & sticky
		values = values[len(objectsFound)+1:]
	} else {
		found |= st.pins | st.touched.Effect&(session.Objects|session.SetsUnknown)
	}
	s.learn(c, pr, values)
	if s.params.Size() > maxStateBytes {
		c.fail("54000", "parameters of more than 65536 bytes in one session")
		c.linger("too many session parameters")
		return
	}
	c.leaves(found, true)
}

// learn takes over what parameters are now.
func (s *server) learn(c *client, pr *probe, values []*string) {
	st := c.session
	before := s.params
	gone := []string{}
	for i, name := range pr.names {
		v := values[i]
		old, had := before.Get(name)
		if session.Custom(name) {
			s.pooled.knows(name)
		}
		switch {
		case v == nil, name == roleParameter && *v == "none", onlyReset(&st.touched, name) && !session.Custom(name) && (!had || *v != old):
			gone = append(gone, name)
		default:
			s.params = s.params.With(name, *v)
		}
	}
	if pr.settings {
		listed := map[string]bool{}
		for _, kv := range pr.listed {
			name := strings.ToLower(kv.Name)
			if canonical, ok := s.p.tracked.Canonical(kv.Name); ok {
				name = canonical
			}
			listed[name] = true
			if _, told := s.reports.Get(name); !told {
				s.params = s.params.With(name, kv.Value)
			}
		}
		for _, kv := range s.params.All() {
			_, told := s.reports.Get(kv.Name)
			if !told && !listed[kv.Name] && !session.Custom(kv.Name) && !slices.Contains(pr.names, kv.Name) {
				gone = append(gone, kv.Name)
			}
		}
	}
	s.params = s.params.Without(gone)
	// What the client had and the server connection has no more was reset: it is what its session began with.
	c.params = s.params
	for _, kv := range c.began.All() {
		if _, ok := c.params.Get(kv.Name); !ok {
			c.params = c.params.With(kv.Name, kv.Value)
		}
	}
	if st.touched.Effect&session.ResetsAll != 0 {
		for _, kv := range s.reports.All() {
			c.restart(kv.Name)
		}
	}
}

// onlyReset: the transaction has reset the parameter and not set it.
func onlyReset(e *session.Effects, name string) bool {
	reset := false
	for _, p := range e.Parameters {
		if strings.EqualFold(p.Name, name) {
			if !p.Reset {
				return false
			}
			reset = true
		}
	}
	return reset
}

// maxCustom bounds how many custom parameters a pool is known to use.
const maxCustom = 64

// knows remembers a custom parameter that clients of the pool use.
func (pl *pooled) knows(name string) {
	if len(pl.custom) < maxCustom && !slices.Contains(pl.custom, name) {
		pl.custom = append(pl.custom, name)
	}
}

// leaves: these objects keep the client at its server connection, or not. sure says that parameters are known too.
func (c *client) leaves(objects session.Effect, sure bool) {
	s, st := c.server, c.session
	if c.state == stateLeaving {
		c.end("client close request")
		return
	}
	if objects == 0 {
		st.pins = 0
		c.settled()
		c.p.loop.Again(&c.conn.Conn)
		return
	}
	switch {
	case c.p.set.SessionState == StateTrack && sure:
		s.spoiled = s.spoiled || objects&(session.SetsUnknown|session.Library) != 0
		c.write(pgwire.AppendNotice(nil, "dropped at the end of the transaction, because session_state is track: "+strings.Join(objects.Reasons(), ", ")))
		c.letGo()
		return
	case st.pins == 0 && c.pooled.pinned >= c.pooled.mostPinned():
		code, message := c.refusalOfPin()
		c.pooled.counts.PinsRefused++
		c.fail(code, message)
		c.linger("too many pinned clients")
		return
	}
	c.pin(objects)
	c.settled()
	c.p.loop.Again(&c.conn.Conn)
}

// letGo parts the client from its server connection, which is cleaned then.
func (c *client) letGo() {
	s := c.server
	s.dirty = true
	s.carries(&c.session.touched)
	c.session.touched, c.session.unknown = session.Effects{}, false
	c.unpin()
	c.server, s.client = nil, nil
	s.link.Serve(nil)
	c.counted()
	if c.state == stateLinked {
		c.state = stateIdle
	}
	s.p.pools.Unlink(s.p.now(), s.pb)
	s.cleanUp()
	c.p.loop.Again(&c.conn.Conn)
}

// stain: a client leaves the server connection, and what it has left there is not known or not wanted.
func (c *client) stain(s *server) {
	st := c.session
	if st == nil || c.reader() == nil {
		return
	}
	c.uncountPin()
	left := st.touched.Effect | st.pins
	if left&session.Unclear == 0 && !c.createsTemporary() {
		return
	}
	s.dirty = true
	if left&(session.SetsUnknown|session.Library|session.Body) != 0 || st.unknown {
		s.spoiled = true
	}
	s.carries(&st.touched)
	*st = sessionState{}
	c.pc.Pinned = false
}

// carries: custom parameters may have come to exist. When everything is reset they are empty.
func (s *server) carries(e *session.Effects) {
	for _, p := range e.Parameters {
		if session.Custom(p.Name) {
			s.params = s.params.With(p.Name, "")
			s.pooled.knows(p.Name)
		}
	}
}

// clean drops everything that a session can have. What a custom parameter leaves behind stays.
func (s *server) clean() {
	s.dirty = false
	if s.spoiled {
		s.discard(pool.ForeignParameter)
		return
	}
	s.task, s.failed = taskClean, nil
	s.link.Purge()
	s.write(pgwire.AppendQuery(nil, "DISCARD ALL"))
	s.expected()
}

// cleaned: every parameter is what it was at the login, but custom ones are empty.
func (s *server) cleaned() {
	left := s.reports
	for _, kv := range s.params.All() {
		if _, told := s.reports.Get(kv.Name); told {
			left = left.With(kv.Name, kv.Value)
		} else if session.Custom(kv.Name) {
			left = left.With(kv.Name, "")
		}
	}
	s.params = left
}
