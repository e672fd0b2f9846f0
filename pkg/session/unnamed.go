package session

import "github.com/pgberth/pgberth/pkg/pgwire"

// Unnamed is what has to precede a use of the unnamed statement; the pooler's own, whose answer is not the client's.
type Unnamed struct {
	Prepare []byte // the body of a Parse: the connection has another's, and the client's is known
	Close   bool   // the connection may have another's, and the client has none
}

// SetUnnamed records a Parse or a Close of the unnamed statement.
func (l *Link) SetUnnamed(typ byte) {
	r := reqParse
	if typ == pgwire.Close {
		r = reqClose
	}
	if g := &l.naming; g.names != nil && !l.verbatim() {
		g.unnamed, g.names.unnamed = g.names, nil
	}
	l.extended(r | unnamed)
}

// Drops records a Parse of the unnamed statement whose text is DEALLOCATE with this name: the server is to be told its own
// name, and has the statement prepared before where it is missing, because only DEALLOCATE answers as DEALLOCATE does.
// Without a Name the message is recorded by SetUnnamed and sent as it is. The books follow when it is parsed: who prepares a
// DEALLOCATE executes it.
func (l *Link) Drops(name string, params Params) (n Naming) {
	g := &l.naming
	if g.names == nil || l.verbatim() || l.status == pgwire.StatusFailed {
		return n
	}
	have := g.names.byName[name]
	if have == nil {
		return n
	}
	have = l.current(have, params)
	s := have.statement
	n = l.provide(s)
	n.Name = s.name
	s.uses++
	g.names.Forget([]byte(name))
	g.prepared.remove(s)
	l.note(undo{forgotten: name, removed: s, of: s})
	g.unnamed, g.names.unnamed = g.names, nil
	l.rename(reqParse|unnamed|named, have)
	return n
}

// UseUnnamed records a Bind of, or a Describe for, the unnamed statement. It is left alone as long as it is prepared and
// used in one transaction. Some drivers prepare it in one and use it in the next: then it is prepared again where it is
// missing. That of another client is never used.
func (l *Link) UseUnnamed(typ byte) (u Unnamed) {
	if g := &l.naming; g.names != nil && g.unnamed != g.names && !l.verbatim() {
		g.unnamed = g.names
		if u.Prepare = g.names.unnamed; u.Prepare != nil {
			l.extended(reqParse | own | unnamed)
		} else {
			u.Close = true
			l.extended(reqClose | own | unnamed)
		}
	}
	r := reqBind
	if typ == pgwire.Describe {
		r = reqDescribe
	}
	l.extended(r)
	return u
}

// UnsureUnnamed says that it is not known yet what the unnamed statement is for the next message: an earlier batch that
// says so may fail yet, and this one does not.
func (l *Link) UnsureUnnamed() bool {
	queue := l.queue[l.head:]
	for i := len(queue) - 1; i >= 0; i-- {
		if queue[i].ends() {
			for ; i >= 0; i-- {
				if queue[i]&unnamed != 0 && queue[i].kind() != reqQuery && queue[i].kind() != reqFunction {
					return true
				}
			}
			return false
		}
		if queue[i]&unnamed != 0 {
			return false
		}
	}
	return false
}

// mislaid: a request that says what the unnamed statement is was skipped.
func (g *naming) mislaid() {
	g.unnamed = nil
	if g.names != nil {
		g.names.unnamed = nil
	}
}
