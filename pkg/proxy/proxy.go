// Package proxy is the pooler: clients on one side, server connections on the other, and one event loop goroutine that
// owns them all, so that none needs a lock.
//
// Dialing a server, its login and cancel requests run as ordinary blocking goroutines that hand their result to the
// loop. A client's login runs in the loop: it is a handful of small messages, and thousands at once must not cost a
// goroutine and its stack each; only deriving a key from a password and the steps of a TLS handshake are done outside.
//
// It refuses to know where its settings come from, that Kubernetes exists, or why its capacity changes; it never decodes
// rows, of SQL it reads DEALLOCATE and DISCARD ALL and nothing else, and it never exits the process.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// manyPools is how many pools there may be before those are forgotten that nobody uses and no server let in: trusted
// clients may name any user, and any database where there is a template.
const manyPools = 256

// stopGrace is how long Run waits for server connections to end when it stops.
const stopGrace = 2 * time.Second

// Proxy is one pooler. New assembles, Run works; everything else may be called from any goroutine.
type Proxy struct {
	log  *slog.Logger
	loop *eventloop.Loop

	// All below belongs to the loop.
	set     *Settings
	tracked *session.Tracked
	pools   *pool.Pools
	pooled  map[pool.Key]*pooled
	creds   map[credentialKey]*credential
	derived map[string]derivedVerifier // of plain secrets in the user list, by user
	offload offload
	mock    []byte // secret of the verifiers shown for unknown users
	census  census
	asks    uint64                // times a secret was looked at, for login.asked
	lookups map[lookupKey]*lookup // runs of auth_query, the latest of each that may be joined
	shakes  handshakes            // of TLS with clients

	listeners []*listener
	clients   []*client
	keys      map[cancelKey]*client
	servers   map[*server]struct{}
	nextID    uint64
	cancels   int
	// moreCancels are the pooler's own beyond what may be under way at once.
	moreCancels []func()

	assembly, answers []byte // see batch

	sweepTimer eventloop.Timer
	late       []expiry

	effects  []pool.Effect
	settling bool
	tick     eventloop.Timer

	draining bool
	stopping bool
	stopAt   eventloop.Timer

	counters     Counters
	dialFailures map[string]uint64 // by SQLSTATE
	nameBook

	ctx     context.Context // ends the blocking goroutines
	cancel  context.CancelFunc
	workers sync.WaitGroup
}

// pooled is what the proxy keeps per (database, user) beside the pool itself.
type pooled struct {
	pool  *pool.Pool
	route Route
	// welcome is what clients are told at login: the parameters of the first server connection, kept up to date.
	welcome     session.Params
	haveWelcome bool
	greeting    greeting
	others      map[Timeouts]*Timeouts // of clients that have others than route's
	statements  session.Statements
	learned     secret // for the server, of the clients' logins
	learnedOf   uint64 // its login.asked
	// refusal is the server's last word to a login that failed for good.
	refusal *LoginError
	counts  PoolCounters
	pinned  int                 // clients that keep a server connection for themselves, or are about to
	custom  []string            // custom parameters that clients use
	shapes  map[string]struct{} // of statements that were logged for it
	dials   int                 // for taking hosts in turn
	worked  int                 // index of the host of the last connection
}

// New assembles a proxy that does not listen yet.
func New(set *Settings, log *slog.Logger) (*Proxy, error) {
	loop, err := eventloop.New()
	if err != nil {
		return nil, err
	}
	var seed [40]byte
	if _, err := rand.Read(seed[:]); err != nil {
		loop.Close()
		return nil, err
	}
	var s uint64
	for _, b := range seed[:8] {
		s = s<<8 | uint64(b)
	}
	p := &Proxy{
		log: log, loop: loop, set: set,
		tracked: session.NewTracked(set.Tracked),
		pools:   pool.New(s),
		pooled:  map[pool.Key]*pooled{},
		creds:   map[credentialKey]*credential{},
		derived: map[string]derivedVerifier{},
		lookups: map[lookupKey]*lookup{},
		mock:    seed[8:],
		keys:    map[cancelKey]*client{},
		servers: map[*server]struct{}{},

		nameBook: nameBook{names: map[string]*name{}},
		shakes:   handshakes{patience: handshakePatience},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.pools.SetLimit(0, pool.AllClients, "", set.MaxClients)
	return p, nil
}

// Listen opens the listeners of the settings. It is called once, before Run. On an error none stays open. A machine
// without IPv6 does without the IPv6 ones, as long as there are others.
func (p *Proxy) Listen() error {
	for i, l := range p.set.Listeners {
		err := p.listen(l)
		last := i == len(p.set.Listeners)-1
		if err != nil && l.TCP.Addr().Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) && (!last || i > 0) {
			p.log.Warn("no IPv6 here, not listening there", "addr", l.TCP.String())
			continue
		}
		if err != nil {
			for _, l := range p.listeners {
				l.close()
			}
			p.listeners = nil
			return err
		}
	}
	return nil
}

// Run serves until Stop, or until a drain ends. When it returns every connection is closed and every goroutine it
// started has ended.
func (p *Proxy) Run() error {
	p.loop.Post(p.armNameCheck)
	err := p.loop.Run()
	p.cancel()
	p.workers.Wait()
	p.endHandshakes()
	for _, l := range p.listeners {
		l.close()
	}
	return err
}

// Drain keeps serving and ends Run when the last client has left, at latest after limit. A second call ends it at once.
func (p *Proxy) Drain(limit time.Duration) {
	p.loop.Post(func() {
		if p.draining {
			p.stop()
			return
		}
		p.draining = true
		p.log.Info("draining: waiting for clients to leave", "clients", len(p.clients), "limit", limit)
		if len(p.clients) == 0 {
			p.stop()
			return
		}
		p.loop.Set(&p.stopAt, p.loop.Now()+limit, func() {
			p.log.Warn("drain limit reached, closing the remaining clients", "clients", len(p.clients))
			p.stop()
		})
	})
}

// Stop ends Run soon: clients are told, server connections are closed politely.
func (p *Proxy) Stop() { p.loop.Post(p.stop) }

func (p *Proxy) stop() {
	if p.stopping {
		return
	}
	p.stopping, p.draining = true, true
	for _, l := range p.listeners {
		l.close()
	}
	clients := slices.Clone(p.clients)
	for _, c := range clients {
		if c.pc.Waiting() { // first, so that they are not given what the others leave
			c.sendAway()
		}
	}
	for _, c := range clients {
		c.sendAway()
	}
	for s := range p.servers {
		if s.closing {
			continue
		}
		p.pools.Discard(p.now(), s.pb, pool.ShuttingDown)
		s.close("pooler is shutting down")
	}
	p.settle()
	p.loop.Set(&p.stopAt, p.loop.Clock()+stopGrace, p.loop.Stop)
	p.stopIfEmpty()
}

// sendAway ends a client because the proxy stops.
func (c *client) sendAway() {
	switch c.state {
	case stateEnded:
		return
	case stateLinger: // was told something already
		c.end("")
		return
	}
	if s := c.server; s != nil && s.link.Busy() {
		c.p.sendCancel(s)
	}
	c.fail("57P01", "terminating connection: the pooler is shutting down")
	c.end("pooler is shutting down")
}

func (p *Proxy) stopIfEmpty() {
	if p.stopping && len(p.servers) == 0 && p.cancels == 0 {
		p.loop.Stop()
	}
}

// Reload swaps the settings. Listeners stay as they are.
func (p *Proxy) Reload(set *Settings) {
	p.loop.Post(func() { p.reload(set) })
}

func (p *Proxy) reload(set *Settings) {
	set.Listeners = p.set.Listeners
	// Nobody has asked what is in the sessions so far.
	recycle := p.set.SessionState == StatePgBouncer && set.SessionState != StatePgBouncer
	secured := !set.ServerTLS.same(p.set.ServerTLS)
	p.set = set
	for _, l := range p.listeners {
		if l.unix == "" && l.conn.Open() {
			tuneAll(l.conn.FD(), set.KeepAlive)
		}
	}
	p.tracked = session.NewTracked(set.Tracked)
	now := p.now()
	p.pools.SetLimit(now, pool.AllClients, "", set.MaxClients)
	for _, bp := range p.pools.All() {
		if bp.Retired() {
			continue
		}
		key := bp.Key()
		pl := p.pooled[key]
		route, ok := set.routeOf(key)
		if !ok || pl == nil {
			p.pools.Retire(now, bp)
			delete(p.pooled, key)
			continue
		}
		route.Pool.Server = route.server()
		old := pl.route
		pl.route = route
		pl.statements.Reader = set.Reader
		p.timed(route.Timeouts.shortest())
		p.setLimits(&route)
		p.pools.Reconfigure(now, bp, route.Pool)
		if recycle {
			p.pools.Recycle(now, bp)
		}
		if secured || old.Pool.Server != route.Pool.Server || old.DBName != route.DBName || old.Password != route.Password || !maps.Equal(old.Startup, route.Startup) || !old.sameWay(&route) {
			pl.haveWelcome = false
			pl.refusal = nil
			p.pools.Recycle(now, bp)
			if old.Pool.Server != route.Pool.Server {
				p.moved(pl)
			}
		}
	}
	p.forgetNames()
	p.settle()
}

// SetCapacity bounds the server connections to one database server ("host:port"), from now on and whatever the pools'
// own sizes say; n < 0 takes the bound away. What is above n closes when it is idle, then when its transaction ends; what
// is left at the deadline (from now) is canceled and closed.
func (p *Proxy) SetCapacity(server string, n int, deadline time.Duration) {
	p.loop.Post(func() {
		now := p.now()
		p.pools.SetCapacity(now, server, n, now+deadline)
		p.settle()
	})
}

func (p *Proxy) setLimits(r *Route) {
	now := p.now()
	p.pools.SetLimit(now, pool.DatabaseClients, r.Database, r.MaxDatabaseClients)
	p.pools.SetLimit(now, pool.DatabaseBackends, r.Database, r.MaxDatabaseBackends)
	p.pools.SetLimit(now, pool.UserClients, r.User, r.MaxUserClients)
	p.pools.SetLimit(now, pool.UserBackends, r.User, r.MaxUserBackends)
}

// ensure finds or makes the pool that a login is routed to.
func (p *Proxy) ensure(r Route) *pooled {
	key := pool.Key{Database: r.Database, User: r.User}
	if pl := p.pooled[key]; pl != nil {
		return pl
	}
	if len(p.pooled) >= manyPools {
		for _, pl := range p.pooled {
			p.dropUnused(pl)
		}
	}
	p.setLimits(&r)
	r.Pool.Server = r.server()
	pl := &pooled{route: r, dials: anyTurn()}
	pl.statements.Reader = p.set.Reader
	pl.pool = p.pools.Ensure(p.now(), key, r.Pool)
	p.pooled[key] = pl
	return pl
}

func (p *Proxy) now() pool.Time { return p.loop.Now() }

// settle carries out what the pool decided. Handlers call it last, when nothing of theirs is left in the scratch buffer:
// a linked client's bytes go out from here.
func (p *Proxy) settle() {
	if p.settling {
		return
	}
	p.settling = true
	for {
		// Copied, because carrying one out asks the pool for more.
		p.effects = append(p.effects[:0], p.pools.Effects()...)
		if len(p.effects) == 0 {
			break
		}
		for i := range p.effects {
			p.carryOut(p.effects[i])
			p.effects[i] = pool.Effect{}
		}
	}
	p.settling = false
	p.armTick()
}

func (p *Proxy) carryOut(e pool.Effect) {
	switch e.Kind {
	case pool.Link:
		c, ok := e.Client.Ref.(*client)
		if !ok {
			e.Client.Ref.(*lookup).linked(e.Backend)
			break
		}
		// The hot path has linked it already, and it may even have gone on since.
		if c.server == nil && c.pc.Backend() == e.Backend {
			c.linked(e.Backend.Ref.(*server))
		}
	case pool.Open:
		p.open(e.Backend)
	case pool.Check:
		e.Backend.Ref.(*server).check(p.set.ServerCheckQuery)
	case pool.Reset:
		s := e.Backend.Ref.(*server)
		s.run(taskReset, s.pooled.route.ResetQuery)
	case pool.Close:
		e.Backend.Ref.(*server).close(e.Reason.String())
	case pool.Kill:
		p.kill(e)
	case pool.Fail:
		if l, ok := e.Client.Ref.(*lookup); ok {
			l.refused(e.Reason)
			break
		}
		e.Client.Ref.(*client).refused(e.Reason)
	}
}

// kill ends a server connection whose time is over, whatever it does: its query is canceled first, because a server
// does not notice that its client is gone before it writes.
func (p *Proxy) kill(e pool.Effect) {
	s, ok := e.Backend.Ref.(*server)
	if !ok || s.closing {
		return // still dialing: the pool asks for a close when that has succeeded
	}
	if s.link.Busy() {
		p.sendCancel(s)
	}
	c := s.client
	if c == nil && e.Client != nil {
		// linked by the pool, but not told yet
		if l, ok := e.Client.Ref.(*lookup); ok && s.lookup == nil {
			l.lost()
		} else {
			c, _ = e.Client.Ref.(*client)
		}
	}
	if c != nil {
		c.fail("57P01", "terminating connection due to administrator command: "+e.Reason.String())
	}
	s.close(e.Reason.String())
	if c != nil {
		c.linger(e.Reason.String())
	}
}

// armTick has the pool looked at when its next timeout is due.
func (p *Proxy) armTick() {
	next, ok := p.pools.Next()
	if !ok {
		p.loop.Unset(&p.tick)
		return
	}
	now := p.loop.Now()
	next = max(next, now+time.Millisecond)
	if p.tick.Armed() && p.tick.When() <= next {
		return
	}
	p.loop.Set(&p.tick, next, p.onTick)
}

func (p *Proxy) onTick() {
	p.pools.Tick(p.now())
	p.settle()
}

// work runs fn on a goroutine of its own; Run waits for it.
func (p *Proxy) work(fn func()) {
	p.workers.Add(1)
	go func() {
		defer p.workers.Done()
		fn()
	}()
}

// open dials for a backend that the pool has made room for.
func (p *Proxy) open(b *pool.Backend) {
	pl := p.pooled[b.Pool().Key()]
	if pl == nil || p.stopping {
		p.pools.OpenFailed(p.now(), b, false)
		return
	}
	sec, proof, ok := p.serverSecret(pl)
	if !ok {
		p.pools.OpenFailed(p.now(), b, false)
		return
	}
	p.dialFor(b, pl, sec, func(d *dialed, err error) { p.opened(b, pl, sec, proof, d, err) })
}

// dialFor dials on a goroutine of its own and hands the result to the loop.
func (p *Proxy) dialFor(b *pool.Backend, pl *pooled, sec secret, then func(*dialed, error)) {
	r := &pl.route
	p.counters.Dials++
	p.connect(pl, dialSpec{
		database: r.DBName, user: r.User, secret: sec, startup: r.Startup, timeout: p.set.ServerConnectTimeout,
		keepAlive: p.set.KeepAlive, target: r.Target, connectQuery: r.ConnectQuery, tls: p.set.ServerTLS,
	}, then)
}

func (p *Proxy) opened(b *pool.Backend, pl *pooled, sec secret, proof *proof, d *dialed, err error) {
	defer func() {
		p.settle()
		p.stopIfEmpty()
	}()
	if err == nil {
		p.serve(b, pl, sec, proof, d)
		return
	}
	p.counters.DialFailures++
	p.countFailure(err)
	var le *LoginError
	permanent := errors.As(err, &le) && le.permanent() && !pl.outdated(sec)
	p.log.Warn("cannot connect to server", "database", pl.route.Database, "user", pl.route.User, "server", pl.route.server(), "error", err)
	p.disproved(pl, sec, proof, le)
	if proof != nil && le.wrongPassword() {
		// It says nothing about the passwords of others.
		p.pools.Refused(p.now(), b)
	} else {
		pl.refusal = nil
		if permanent {
			pl.refusal = le
		}
		p.openFailed(b, le, permanent)
	}
	if proof != nil {
		p.dropUnused(pl)
	}
}

// serve takes a finished login into the pool.
func (p *Proxy) serve(b *pool.Backend, pl *pooled, sec secret, proof *proof, d *dialed) {
	s, err := p.adopt(b, pl, d)
	if err != nil {
		p.log.Error("cannot watch server connection", "error", err)
		p.pools.OpenFailed(p.now(), b, false)
		return
	}
	pl.refusal = nil
	p.proved(pl, sec, proof, d.secret)
	if p.stopping {
		p.pools.Discard(p.now(), b, pool.ShuttingDown)
		s.close("pooler is shutting down")
		return
	}
	p.pools.Opened(p.now(), b)
}
