package proxy

import (
	"fmt"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
)

// Lookup is how the secret of a user who is not in the user list is found: by a query to a database server.
type Lookup struct {
	Route Route  // of the pool it runs in: the one of auth_user
	Query string // has $1, the user's name, and answers with two columns
}

// freshSession takes back what clients of the same pool may have left behind on a server connection: what a name in
// auth_query means must not depend on them. Everything is as it is right after a login. A search_path of pg_catalog alone
// would be stricter, but functions that are found by auth_user's own search_path are a usual set-up. Temporary tables have
// to go because they come before all others.
const freshSession = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DISCARD TEMP"

// lookupKey: logins that ask the same share an answer.
type lookupKey struct {
	pool        pool.Key
	query, user string
}

// lookup is one run of auth_query. It is a client of auth_user's pool, but not one that counts as such.
type lookup struct {
	p      *Proxy
	key    lookupKey
	pc     pool.Client
	pooled *pooled
	server *server // set while it runs

	clients []*client // in their login; those that have left meanwhile look elsewhere
	waiting int       // of them
	// sent: what the query sees may be older than a login that comes now, which waits for the next one.
	sent    bool
	asked   uint64
	next    *lookup
	retried bool
	limit   eventloop.Timer
	answer  answer
}

// lookUp has the secret of the client's user found; lookedUp is called in the loop.
func (p *Proxy) lookUp(c *client, lk *Lookup) {
	route := lk.Route
	key := lookupKey{pool.Key{Database: route.Database, User: route.User}, lk.Query, c.login.startup.User}
	l := p.lookups[key]
	switch {
	case l == nil:
		l = &lookup{p: p, key: key}
		l.pc.Ref = l
		p.lookups[key] = l
		l.join(c)
		l.begin(route)
	case !l.sent:
		l.join(c)
	default:
		if l.next == nil {
			l.next = &lookup{p: p, key: key}
			l.next.pc.Ref = l.next
		}
		l.next.join(c)
	}
}

func (l *lookup) join(c *client) {
	l.clients = append(l.clients, c)
	l.waiting++
	c.login.lookup = l
}

func (l *lookup) begin(route Route) {
	p := l.p
	l.pooled = p.ensure(route)
	if err := p.pools.Visit(p.now(), l.pooled.pool, &l.pc); err != nil {
		l.end(finding{code: "08006", refusal: err.Error()})
		return
	}
	// The time to wait for a connection is the time to wait for an answer: a table may be locked.
	if limit := l.pooled.pool.Settings().QueryWaitTimeout; limit > 0 {
		p.loop.Set(&l.limit, p.loop.Now()+limit, func() {
			l.late(limit)
			p.settle()
		})
	}
	p.pools.Acquire(p.now(), &l.pc)
}

// linked: the pool has found a server connection.
func (l *lookup) linked(b *pool.Backend) {
	if l.pc.Backend() != b {
		return // it has left meanwhile
	}
	s := b.Ref.(*server)
	l.p.asks++
	l.server, l.sent, l.asked = s, true, l.p.asks
	l.answer = answer{}
	s.lookup, s.failed = l, nil
	s.task = taskLookup
	// The name is a parameter, never a part of the text. What it is prepared as is closed again: nothing is left for those
	// who use the connection next. Two rows tell as much as more.
	out := pgwire.AppendQuery(nil, freshSession)
	out = pgwire.AppendParse(out, "", l.key.query+"\x00\x00\x00")
	out = pgwire.AppendBind(out, l.key.user)
	out = pgwire.AppendDescribePortal(out)
	out = pgwire.AppendExecute(out, 2)
	out = pgwire.AppendCloseStatement(out, "")
	out = pgwire.AppendSync(out)
	for _, typ := range []byte{pgwire.Query, pgwire.Parse, pgwire.Bind, pgwire.Describe, pgwire.Execute, pgwire.Close, pgwire.Sync} {
		_ = s.link.Sent(typ) // always allowed
	}
	s.write(out)
}

// lookedUp: the server has answered ReadyForQuery to everything.
func (s *server) lookedUp() {
	l, failed := s.lookup, s.failed
	s.lookup, s.task = nil, taskNone
	s.cleaned()
	l.server = nil
	s.abandoned(false)
	l.end(l.judge(failed))
}

// judge says what the answer means, and tells the operator what to repair.
func (l *lookup) judge(failed *pgwire.ErrorFields) finding {
	f := l.answer.finding(l.key.user, failed)
	f.asked = l.asked
	switch {
	case f.repair != "":
		l.p.log.Error("auth_query failed", "database", l.key.pool.Database, "auth_user", l.key.pool.User, "error", f.repair)
	case f.found:
		l.p.census.saw(f.secret)
	}
	return f
}

// refused: the pool has no server connection for it.
func (l *lookup) refused(why pool.Reason) {
	f := finding{code: "08006", refusal: why.String()}
	switch why {
	case pool.LoginFailed:
		if r := l.pooled.refusal; r != nil {
			l.fault(fmt.Sprintf("auth_user cannot log in: %v", r))
			l.end(finding{code: "08006", refusal: cannotLookUp})
			return
		}
	case pool.QueryWaitTimeout:
		f = l.lateness(l.pooled.pool.Settings().QueryWaitTimeout)
	}
	l.fault(f.refusal)
	l.end(f)
}

const cannotLookUp = "users cannot be looked up now"

func (l *lookup) lateness(limit time.Duration) finding {
	return finding{code: "53300", refusal: fmt.Sprintf("query_wait_timeout: %s, for %v", cannotLookUp, limit.Round(time.Millisecond))}
}

func (l *lookup) fault(reason string) {
	l.p.log.Error("auth_query could not run", "database", l.key.pool.Database, "auth_user", l.key.pool.User, "error", reason)
}

// late: it has taken too long.
func (l *lookup) late(limit time.Duration) {
	l.fault(fmt.Sprintf("no answer within query_wait_timeout, %v: a lock, or a slow query?", limit))
	l.end(l.lateness(limit))
}

// lost: its server connection is gone. It may have been dead already: it is asked once more.
func (l *lookup) lost() {
	l.server, l.sent = nil, false
	if l.retried {
		l.fault("the server connection was lost twice")
		l.end(finding{code: "08006", refusal: cannotLookUp})
		return
	}
	l.retried = true
	l.p.pools.Acquire(l.p.now(), &l.pc)
}

// end gives everybody the answer.
func (l *lookup) end(f finding) {
	l.leave()
	clients := l.clients
	l.clients = nil
	for _, c := range clients {
		if c.state != stateLogin || c.login.lookup != l {
			continue
		}
		c.login.lookup = nil
		c.found(f)
	}
}

// dropLookup forgets a client that has left. When it was the last one, its query is canceled.
func (p *Proxy) dropLookup(c *client) {
	l := c.login.lookup
	if l == nil {
		return
	}
	c.login.lookup = nil
	if l.waiting--; l.waiting == 0 && p.lookups[l.key] == l {
		l.leave()
	}
}

// leave takes it off the books and lets the next one begin.
func (l *lookup) leave() {
	p := l.p
	delete(p.lookups, l.key)
	p.loop.Unset(&l.limit)
	if s := l.server; s != nil {
		l.server, s.lookup = nil, nil
		s.task = taskNone
		s.cleaned()
		p.sendCancel(s)
		s.abandoned(false)
		s.abandonedBy(p.set.CancelWaitTimeout)
	}
	if l.pc.Pool() != nil {
		if b := l.pc.Backend(); b != nil { // the pool has linked it and not said so yet
			p.pools.Release(p.now(), b)
		}
		p.pools.Disconnect(p.now(), &l.pc)
	}
	if n := l.next; n != nil && n.waiting > 0 {
		l.next = nil
		p.lookups[n.key] = n
		if route, ok := p.set.routeOf(n.key.pool); ok {
			n.begin(route)
		} else {
			n.end(finding{code: "08006", refusal: cannotLookUp})
		}
	}
}

// abandonedBy closes a server connection that does not come to rest in time.
func (s *server) abandonedBy(limit time.Duration) {
	if s.task != taskAbandon || limit <= 0 {
		return
	}
	s.p.loop.Set(&s.timer, s.p.loop.Now()+limit, func() {
		s.discard(pool.ClientLeftQuerying)
		s.p.settle()
	})
}

// routeOf resolves the route of a pool that exists. auth_user's own is not the one of a client of that name where the
// database forces another user.
func (set *Settings) routeOf(key pool.Key) (Route, bool) {
	r, ok := set.Route(key.Database, key.User)
	if ok && r.User != key.User && set.AuthRoute != nil {
		return set.AuthRoute(key.Database, key.User)
	}
	return r, ok
}
