package session

import (
	"slices"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// Naming is how a message that names a prepared statement goes to the server. What is to be closed and prepared first is
// the pooler's own: the client does not see the answers.
type Naming struct {
	Evict   *Statement // close it first: the connection has as many as it may
	Prepare *Statement // prepare it first: the connection has not got it
	// Name takes the place of the client's name. Local says instead that the message is not sent at all: the pooler
	// answers it when its turn comes.
	Name  string
	Local bool
	// Statement is what a Bind or Describe is about; nil if it is not known.
	Statement *Statement
}

// undo is what a request has done to the books before its answer was known. If the server never carries it out, it is
// undone.
type undo struct {
	defined   string     // the client's name that was given, "" for none
	forgotten string     // the client's name that was taken away
	added     *Statement // to what the connection has
	removed   *Statement // from what the connection has
	of        *Statement // what the names stand for; counts as a use. Nil if it is not known yet what it does.
}

// naming is what a link knows about prepared statements.
type naming struct {
	prepared prepared // what the connection has, what is under way included
	limit    int      // of prepared; 0: names are not followed
	names    *Names   // the client's; nil without one
	// undos[undone:] belong to the named requests in the queue, in order.
	undos  []undo
	undone int
	// renames are the client's names in the renamed requests.
	renames renames
	failing *given // of the request that met the last error; nil if it had none
	// fresh are the statements that were prepared since nothing was under way.
	fresh []*Statement
	// unnamed is the client that said last what the connection's unnamed statement is; nil if it is nobody's.
	unnamed *Names
}

// renames is a FIFO; names given once are used often.
type renames struct {
	list []*given
	head int
}

func (r *renames) push(g *given) { r.list = append(r.list, g) }

func (r *renames) pop() {
	r.list[r.head] = nil
	if r.head++; r.head == len(r.list) {
		r.list, r.head = r.list[:0], 0
		if cap(r.list) > 1024 {
			r.list = nil // a long pipeline does not keep its memory
		}
	}
}

// renamedBy is the client's name in the request at the head.
func (g *naming) renamedBy(r request) *given {
	if r&renamed == 0 {
		return nil
	}
	return g.renames.list[g.renames.head]
}

// Failing is the statement that met the last error, nil if the error is about none; described tells whether its client was
// told what its result is.
func (l *Link) Failing() (s *Statement, described bool) {
	if f := l.naming.failing; f != nil {
		return f.statement, f.described
	}
	return nil, false
}

// Doubt has a statement prepared again on this connection before anybody uses it there.
func (l *Link) Doubt(s *Statement) { l.naming.prepared.doubt(s) }

// Translate puts the client's name of a prepared statement in the place of the server's, in what the server says about
// the last error.
func (l *Link) Translate(text string) string {
	f := l.naming.failing
	if f == nil {
		return text
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, f.statement.name)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		text = rest
		if rest != "" && '0' <= rest[0] && rest[0] <= '9' {
			b.WriteString(f.statement.name) // another's
			continue
		}
		b.WriteString(f.name)
	}
}

// Tracks says whether prepared statements of clients are followed on this connection.
func (l *Link) Tracks() bool { return l.naming.limit > 0 }

// Track has the statements of a pool followed on this connection, at most limit of them at once.
func (l *Link) Track(registry *Statements, limit int) {
	l.naming.prepared.registry = registry
	l.naming.limit = limit
}

// Limit is how many statements the connection may have.
func (l *Link) Limit() int { return l.naming.limit }

// Pending is how many requests with an effect on names are not known to be carried out.
func (l *Link) Pending() int { return len(l.naming.undos) - l.naming.undone }

// Prepared is the number of statements that the connection has.
func (l *Link) Prepared() int { return len(l.naming.prepared.byStatement) }

// Purge records a Query that drops all prepared statements, if it succeeds: Deallocated tells.
func (l *Link) Purge() {
	if l.verbatim() {
		l.plain(reqQuery)
		return
	}
	l.note(undo{})
	l.plain(reqQuery | named)
}

// Unsure says that it is not known yet whether a request with an effect on names is carried out, which is not in the
// batch that the next message belongs to: that message must wait for the answer, because it is carried out in any case.
func (l *Link) Unsure() bool {
	if l.naming.undone == len(l.naming.undos) {
		return false
	}
	found := false
	for _, r := range l.queue[l.head:] {
		if found = found || r&named != 0; found && r.ends() {
			return true
		}
	}
	return false
}

// Serve names the client whose messages come next; nil when it has left.
func (l *Link) Serve(names *Names) { l.naming.names = names }

// Ignores says that the server does not carry out what is sent next, other than a Sync.
func (l *Link) Ignores() bool { return l.verbatim() }

// verbatim says that a message goes to the server as it is whatever it names: the server will ignore it, or answer with
// an error that nobody can foresee.
func (l *Link) verbatim() bool { return l.skipping || l.copy == copyIn }

// Parse records a Parse of a named statement. body is what follows the name, params what the text is read under.
func (l *Link) Parse(name string, body []byte, params Params) Naming {
	if l.verbatim() {
		l.extended(reqParse)
		return Naming{Name: foreign(name)}
	}
	g := &l.naming
	if have := g.names.byName[name]; have != nil {
		// The server knows best what is wrong with it; that there is one of the name is the last thing it looks at.
		have = l.current(have, params)
		n := l.provide(have.statement)
		n.Name = have.statement.name
		l.rename(reqParse, have)
		return n
	}
	s := g.prepared.registry.find(statementKey{string(body), params})
	made := g.names.define(name, s)
	there, stale := g.prepared.use(s)
	if there && !stale && l.status != pgwire.StatusFailed && !slices.ContainsFunc(l.queue[l.head:], request.ends) {
		l.note(undo{defined: name, of: s})
		l.push(reqParse | local | named)
		return Naming{Local: true}
	}
	n := Naming{Name: s.name}
	if there {
		// Only the server can tell whether a failed transaction lets it through, and an earlier batch may fail yet.
		n.Evict = s
		l.evict(s)
	} else {
		n.Evict = l.makeRoom()
	}
	g.add(s)
	l.note(undo{defined: name, added: s, of: s})
	l.rename(reqParse|named, made)
	return n
}

// Use records a Bind of, or a Describe for, a named statement. params are what texts are read under now: where the text
// has to be read again after a change of them, it is another statement.
func (l *Link) Use(typ byte, name []byte, params Params) Naming {
	r := reqBind
	if typ == pgwire.Describe {
		r = reqDescribe
	}
	have := l.naming.names.byName[string(name)]
	if have == nil || l.verbatim() {
		l.extended(r)
		return Naming{Name: foreign(string(name))}
	}
	have = l.current(have, params)
	have.described = have.described || typ == pgwire.Describe
	n := l.provide(have.statement)
	n.Name, n.Statement = have.statement.name, have.statement
	l.rename(r, have)
	return n
}

// current makes another statement of a client's when the connection has to read its text, and other parameters hold now.
func (l *Link) current(have *given, params Params) *given {
	g := &l.naming
	if there, stale := g.prepared.use(have.statement); !have.stale && (there && !stale || have.statement.key.params == params) {
		return have
	}
	s := g.prepared.registry.find(statementKey{have.statement.key.body, params})
	have = g.names.define(have.name, s)
	g.prepared.registry.drop(s) // find's use
	return have
}

// rename records a request that goes under the server's name of a statement.
func (l *Link) rename(r request, g *given) {
	l.naming.renames.push(g)
	l.extended(r | renamed)
}

// CloseStatement records the Close of a named statement.
func (l *Link) CloseStatement(name []byte) Naming {
	if l.verbatim() {
		l.extended(reqClose)
		return Naming{Name: foreign(string(name))}
	}
	if have := l.naming.names.byName[string(name)]; have != nil {
		have.statement.uses++
		l.note(undo{forgotten: have.name, of: have.statement})
		l.naming.names.Forget(name)
		l.push(reqClose | local | named)
	} else {
		l.push(reqClose | local)
	}
	return Naming{Local: true}
}

// foreign is a client's name that no statement of ours may answer to.
func foreign(name string) string {
	if strings.HasPrefix(name, StatementPrefix) {
		return name + " "
	}
	return name
}

// provide has s prepared on the connection before the message that needs it.
func (l *Link) provide(s *Statement) (n Naming) {
	switch there, stale := l.naming.prepared.use(s); {
	case there && !stale:
		return n
	case there:
		n.Evict = s
		l.evict(s)
	default:
		n.Evict = l.makeRoom()
	}
	n.Prepare = s
	l.naming.add(s)
	s.uses++
	l.note(undo{added: s, of: s})
	l.extended(reqParse | own | named)
	return n
}

// makeRoom closes the statement that was not used for longest when there are too many.
func (l *Link) makeRoom() *Statement {
	p := &l.naming.prepared
	if len(p.byStatement) < l.naming.limit {
		return nil
	}
	s := p.oldest()
	l.evict(s)
	return s
}

func (l *Link) evict(s *Statement) {
	s.uses++
	l.naming.prepared.remove(s)
	l.note(undo{removed: s, of: s})
	l.extended(reqClose | own | named)
}

func (l *Link) note(u undo) { l.naming.undos = append(l.naming.undos, u) }

func (g *naming) add(s *Statement) {
	g.prepared.add(s)
	g.fresh = append(g.fresh, s)
}

// settled: nothing is under way.
func (g *naming) settled() {
	if len(g.fresh) > 0 {
		clear(g.fresh)
		g.fresh = g.fresh[:0]
	}
}

// Changed records that the server has reported a parameter under which texts are read. It does so at the end of a batch,
// so what was prepared in the meantime may have been read before or after.
func (l *Link) Changed() {
	g := &l.naming
	for _, s := range g.fresh {
		g.prepared.doubt(s)
	}
	if len(g.fresh) == 0 || g.names == nil {
		return
	}
	for _, have := range g.names.byName {
		have.stale = have.stale || slices.Contains(g.fresh, have.statement)
	}
}

// Local tells what the pooler has to answer now in the server's place: ParseComplete or CloseComplete. It is asked again
// until there is nothing.
func (l *Link) Local() (typ byte, ok bool) {
	if !l.Busy() || l.queue[l.head]&local == 0 {
		return 0, false
	}
	typ = pgwire.ParseComplete
	if l.queue[l.head].kind() == reqClose {
		typ = pgwire.CloseComplete
	}
	l.pop()
	return typ, true
}

// done: the oldest named request was carried out.
func (g *naming) done() {
	if s := g.undos[g.undone].of; s != nil {
		g.prepared.registry.drop(s)
	}
	g.forget(1)
}

// forget drops the oldest undos.
func (g *naming) forget(n int) {
	clear(g.undos[g.undone : g.undone+n])
	if g.undone += n; g.undone == len(g.undos) {
		g.undone = 0
		g.undos = g.undos[:0]
		if cap(g.undos) > 256 {
			g.undos = nil // a long pipeline does not keep its memory
		}
	}
}

// discard takes back what the n oldest undos stand for, the last of them first.
func (g *naming) discard(n int) {
	for i := g.undone + n - 1; i >= g.undone; i-- {
		u := &g.undos[i]
		if u.added != nil {
			g.prepared.remove(u.added)
		}
		if u.removed != nil {
			g.prepared.restore(u.removed)
		}
		if u.defined != "" && g.names != nil {
			g.names.Forget([]byte(u.defined))
		}
		if u.forgotten != "" && g.names != nil {
			g.names.define(u.forgotten, u.of)
		}
		if u.of != nil {
			g.prepared.registry.drop(u.of)
		}
	}
	g.forget(n)
}

// Deallocated records that the server has dropped all its prepared statements, as the tag of DEALLOCATE ALL or DISCARD ALL tells.
// What requests still under way have done to the books comes after it.
func (l *Link) Deallocated() {
	g := &l.naming
	if g.limit == 0 {
		return
	}
	g.prepared.clear()
	if g.names != nil {
		g.names.Clear()
	}
	for i := g.undone; i < len(g.undos); i++ {
		u := &g.undos[i]
		if u.added != nil {
			g.prepared.restore(u.added)
		}
		if u.removed != nil {
			g.prepared.remove(u.removed)
		}
		if g.names != nil && u.defined != "" {
			g.names.define(u.defined, u.of)
		}
		if g.names != nil && u.forgotten != "" {
			g.names.Forget([]byte(u.forgotten))
		}
	}
}

// Deallocate records a Query that is nothing but DEALLOCATE with this name. Local says that it is not sent: the server
// would not know the statement, and the pooler answers in its place. Without a Name it is sent as it is.
func (l *Link) Deallocate(name string) Naming {
	g := &l.naming
	have := g.names.byName[name]
	if have == nil || l.Busy() || l.unsynced || l.verbatim() || l.status == pgwire.StatusFailed {
		l.plain(reqQuery)
		return Naming{}
	}
	s := have.statement
	if there, _ := g.prepared.use(s); !there {
		g.names.Forget([]byte(name))
		return Naming{Local: true}
	}
	s.uses++
	g.names.Forget([]byte(name))
	g.prepared.remove(s)
	l.note(undo{forgotten: name, removed: s, of: s})
	l.plain(reqQuery | named)
	return Naming{Name: s.name}
}

// Release gives up what the connection has, because it is closed.
func (l *Link) Release() {
	g := &l.naming
	if g.limit == 0 {
		return
	}
	g.prepared.clear()
	for g.undone < len(g.undos) {
		g.done()
	}
}
