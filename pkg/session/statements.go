package session

import (
	"bytes"
	"container/list"
	"strconv"
	"strings"
)

// StatementPrefix begins the names under which statements are prepared on server connections.
const StatementPrefix = "pgberth_"

// Statement is a prepared statement as all clients of a pool share it: a text and the types of its parameters, under the
// one name that it has on every server connection.
type Statement struct {
	name string
	key  statementKey
	uses int // names of clients, server connections and requests under way that have it
	// effects are what its text does to its session.
	effects Effects
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
	// Reader tells what texts do to their sessions; nil if that is not wanted.
	Reader *Reader

	byKey map[statementKey]*Statement
	last  uint64
}

// find returns the statement of this key, with one use more.
func (r *Statements) find(key statementKey) *Statement {
	s := r.byKey[key]
	if s == nil {
		r.last++
		s = &Statement{name: StatementPrefix + strconv.FormatUint(r.last, 10), key: key}
		if r.byKey == nil {
			r.byKey = map[statementKey]*Statement{}
		}
		r.byKey[s.key] = s
		if r.Reader != nil {
			text, _, _ := strings.Cut(key.body, "\x00")
			s.effects = r.Reader.Read([]byte(text))
		}
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

// Effects are what a use of the statement does to its session.
func (s *Statement) Effects() *Effects { return &s.effects }

// Names are the prepared statements of one client's session, by the names it has given them.
type Names struct {
	registry *Statements
	byName   map[string]*given
	size     int // bytes of names and texts
	// unnamed is the body of the unnamed statement, if another transaction may use it.
	unnamed []byte
}

// given is a name that a client has given a statement.
type given struct {
	name      string
	statement *Statement
	// stale: its text may have been read under other parameters than the statement's.
	stale bool
	// described: the client was told what its result is.
	described bool
}

// NewNames is for a client of the pool whose statements these are.
func NewNames(registry *Statements) Names { return Names{registry: registry} }

// Of is the statement that a name stands for; nil if there is none.
func (n *Names) Of(name []byte) *Statement {
	if g := n.byName[string(name)]; g != nil {
		return g.statement
	}
	return nil
}

// Len is the number of names.
func (n *Names) Len() int { return len(n.byName) }

// Size is what names and texts take, in bytes, however many clients share the texts.
func (n *Names) Size() int { return n.size }

// KeepUnnamed remembers the body of a Parse of the unnamed statement for a later transaction; nil forgets it.
func (n *Names) KeepUnnamed(body []byte) { n.unnamed = bytes.Clone(body) }

// Forget takes a name away; unknown names are ignored.
func (n *Names) Forget(name []byte) {
	if g := n.byName[string(name)]; g != nil {
		n.size -= g.size()
		delete(n.byName, string(name))
		n.registry.drop(g.statement)
	}
}

// Clear takes all names away.
func (n *Names) Clear() {
	for _, g := range n.byName {
		n.registry.drop(g.statement)
	}
	n.byName, n.size, n.unnamed = nil, 0, nil
}

func (n *Names) define(name string, s *Statement) *given {
	if n.byName == nil {
		n.byName = map[string]*given{}
	}
	s.uses++
	n.Forget([]byte(name))
	g := &given{name: name, statement: s}
	n.byName[name] = g
	n.size += g.size()
	return g
}

func (g *given) size() int { return len(g.name) + len(g.statement.key.body) }

// prepared are the statements that a server connection has.
type prepared struct {
	registry    *Statements
	byStatement map[*Statement]*list.Element // of order
	order       list.List                    // of *preparedEntry, least recently used first
}

type preparedEntry struct {
	statement *Statement
	// stale: the server may have read the text under other parameters than the statement's.
	stale bool
}

// use tells whether the connection has s, which is then the last to go. One that is stale has to be prepared anew.
func (p *prepared) use(s *Statement) (there, stale bool) {
	e := p.byStatement[s]
	if e == nil {
		return false, false
	}
	p.order.MoveToBack(e)
	return true, e.Value.(*preparedEntry).stale
}

func (p *prepared) add(s *Statement) {
	if p.byStatement == nil {
		p.byStatement = map[*Statement]*list.Element{}
	}
	p.byStatement[s] = p.order.PushBack(&preparedEntry{statement: s})
	s.uses++
}

// restore adds s if it is not there.
func (p *prepared) restore(s *Statement) {
	if p.byStatement[s] == nil {
		p.add(s)
	}
}

func (p *prepared) remove(s *Statement) {
	if e := p.byStatement[s]; e != nil {
		p.order.Remove(e)
		delete(p.byStatement, s)
		p.registry.drop(s)
	}
}

func (p *prepared) clear() {
	for s := range p.byStatement {
		p.registry.drop(s)
	}
	p.byStatement = nil
	p.order.Init()
}

func (p *prepared) oldest() *Statement { return p.order.Front().Value.(*preparedEntry).statement }

// doubt makes s stale.
func (p *prepared) doubt(s *Statement) {
	if e := p.byStatement[s]; e != nil {
		e.Value.(*preparedEntry).stale = true
	}
}
