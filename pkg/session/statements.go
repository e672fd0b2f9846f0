package session

import "strconv"

// StatementPrefix begins the names under which statements are prepared on server connections.
const StatementPrefix = "pgberth_"

// Statement is a prepared statement as all clients of a pool share it: a text and the types of its parameters, under the
// one name that it has on every server connection.
type Statement struct {
	name string
	key  statementKey
	uses int // names of clients, server connections and requests under way that have it
}

// statementKey is what makes two statements the same: what follows the name in Parse, and the parameters under which the
// text is read. A literal may mean another date under another DateStyle.
type statementKey struct {
	body   string
	params Params
}

// Name is the statement's name on every server connection.
func (s *Statement) Name() string { return s.name }

// Body is what follows the name in a Parse message: the text, and the parameter types.
func (s *Statement) Body() string { return s.key.body }

// Statements are the statements of one pool, each once, as long as anybody has them. The zero value is empty.
type Statements struct {
	byKey map[statementKey]*Statement
	last  uint64
}

// find returns the statement of this body under these parameters, with one use more.
func (r *Statements) find(body []byte, params Params) *Statement {
	s := r.byKey[statementKey{string(body), params}]
	if s == nil {
		r.last++
		s = &Statement{name: StatementPrefix + strconv.FormatUint(r.last, 10), key: statementKey{string(body), params}}
		if r.byKey == nil {
			r.byKey = map[statementKey]*Statement{}
		}
		r.byKey[s.key] = s
	}
	s.uses++
	return s
}

func (r *Statements) drop(s *Statement) {
	if s.uses--; s.uses == 0 {
		delete(r.byKey, s.key)
	}
}

// Len is the number of statements.
func (r *Statements) Len() int { return len(r.byKey) }

// Names are the prepared statements of one client's session, by the names it has given them.
type Names struct {
	registry *Statements
	byName   map[string]*given
}

// given is a name that a client has given a statement.
type given struct {
	name      string
	statement *Statement
}

// NewNames is for a client of the pool whose statements these are.
func NewNames(registry *Statements) Names { return Names{registry: registry} }

// Len is the number of names.
func (n *Names) Len() int { return len(n.byName) }

// Forget takes a name away; unknown names are ignored.
func (n *Names) Forget(name []byte) {
	if g := n.byName[string(name)]; g != nil {
		delete(n.byName, string(name))
		n.registry.drop(g.statement)
	}
}

// Clear takes all names away.
func (n *Names) Clear() {
	for _, g := range n.byName {
		n.registry.drop(g.statement)
	}
	n.byName = nil
}

func (n *Names) define(name string, s *Statement) *given {
	if n.byName == nil {
		n.byName = map[string]*given{}
	}
	s.uses++
	n.Forget([]byte(name))
	g := &given{name, s}
	n.byName[name] = g
	return g
}

// prepared are the statements that a server connection has, least recently used first.
type prepared struct {
	registry       *Statements
	byStatement    map[*Statement]*preparedEntry
	oldest, newest *preparedEntry
}

type preparedEntry struct {
	statement    *Statement
	older, newer *preparedEntry
}

// use tells whether the connection has s, which is then the last to go.
func (p *prepared) use(s *Statement) bool {
	e := p.byStatement[s]
	if e == nil {
		return false
	}
	if e != p.newest {
		p.unchain(e)
		p.chain(e)
	}
	return true
}

func (p *prepared) add(s *Statement) {
	if p.byStatement == nil {
		p.byStatement = map[*Statement]*preparedEntry{}
	}
	e := &preparedEntry{statement: s}
	p.byStatement[s] = e
	p.chain(e)
	s.uses++
}

// restore adds s if it is not there.
func (p *prepared) restore(s *Statement) {
	if !p.use(s) {
		p.add(s)
	}
}

func (p *prepared) remove(s *Statement) {
	if e := p.byStatement[s]; e != nil {
		p.unchain(e)
		delete(p.byStatement, s)
		p.registry.drop(s)
	}
}

func (p *prepared) clear() {
	for s := range p.byStatement {
		p.registry.drop(s)
	}
	p.byStatement, p.oldest, p.newest = nil, nil, nil
}

func (p *prepared) chain(e *preparedEntry) {
	e.older, e.newer = p.newest, nil
	if p.newest != nil {
		p.newest.newer = e
	} else {
		p.oldest = e
	}
	p.newest = e
}

func (p *prepared) unchain(e *preparedEntry) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		p.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		p.newest = e.older
	}
}
