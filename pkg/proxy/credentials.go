package proxy

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/scram"
)

// wrongInterval is how often a password that may be wrong is tried against a server, per user.
const wrongInterval = time.Second

const databaseMoved = "the database has moved during the login: connect again"

// retryInterval is how soon a trial that found no permit or no server is looked at again.
const retryInterval = 100 * time.Millisecond

// credentialKey names a role of a database server.
type credentialKey struct{ server, user string }

// credential is what passthrough has learned of a role: enough to judge further clients and to open further server
// connections, but not the password, wherever the server allows that.
type credential struct {
	key credentialKey
	// proven: verifier and secret are set.
	proven   bool
	verifier scram.Verifier
	secret   secret
	// until is how long clients are judged without the server, in loop time; 0 is for ever. Server connections for
	// clients that are logged in are opened with the secret beyond it.
	until  time.Duration
	expiry eventloop.Timer

	// queue are clients whose password is to be tried against the server, one at a time.
	queue  []*proof
	trying *proof
	// wrongAt is when the server last refused one.
	wrongAt time.Duration
	refused bool
	timer   eventloop.Timer
}

// proof is one client's password on trial. It is tried on a connection of its own, which leaves a permit to those who
// have proved theirs; where nobody has and there is no permit, or the server does not answer, the client waits in the
// pool like any other and the connection opened for it is the trial.
type proof struct {
	client   *client
	cred     *credential
	password string
	// compared is the StoredKey of the verifier that it was compared with; same tells that it was that one.
	compared [32]byte
	same     bool
	dialing  bool
	queued   bool // tried by way of the pool's queue
	tried    bool
	proved   bool
}

// right: it is the password that the server has accepted, perhaps too long ago.
func (pr *proof) right(cr *credential) bool {
	return cr.proven && pr.same && pr.compared == cr.verifier.StoredKey
}

func (p *Proxy) credential(r *Route) *credential {
	key := credentialKey{r.server(), r.User}
	cr := p.creds[key]
	if cr == nil {
		cr = &credential{key: key}
		p.creds[key] = cr
	}
	return cr
}

// fresh: a password that is right need not be tried against the server again.
func (cr *credential) fresh(now time.Duration) bool { return cr.until == 0 || now < cr.until }

func (cr *credential) forget() {
	cr.proven = false
	cr.verifier = scram.Verifier{}
	cr.secret = secret{}
}

// drop forgets a role that nothing is known of and nobody waits for: hostile names must not pile up.
func (p *Proxy) drop(cr *credential) {
	if !cr.proven && cr.trying == nil && len(cr.queue) == 0 {
		p.loop.Unset(&cr.timer)
		p.loop.Unset(&cr.expiry)
		delete(p.creds, cr.key)
	}
}

// dropUnused forgets a pool that has no clients and never opened a server connection: it was made for a name that no
// server knows.
func (p *Proxy) dropUnused(pl *pooled) {
	st, key := pl.pool.Stats(), pl.pool.Key()
	if p.pooled[key] == pl && st.Opened == 0 && st.Clients+st.Opening+st.Closing == 0 {
		delete(p.pooled, key)
		p.pools.Retire(p.now(), pl.pool)
	}
}

// expired: nobody has proved the password for a while. While clients are logged in with it their server connections
// need it.
func (p *Proxy) expired(cr *credential) {
	ttl := p.set.PassthroughTTL
	if ttl <= 0 {
		return
	}
	for _, pl := range p.pooled {
		if pl.route.User == cr.key.user && pl.route.server() == cr.key.server && pl.pool.Stats().Clients > 0 {
			p.loop.Set(&cr.expiry, p.loop.Now()+ttl, func() { p.expired(cr) })
			return
		}
	}
	cr.forget()
	p.drop(cr)
}

// judge decides about a passthrough client's password: by what is known of the role, else by the server.
func (p *Proxy) judge(c *client, password string) {
	r := &c.login.route
	if r.Password != "" {
		// The role's password is configured. Another one must not get in just because that one opens connections.
		p.matches(r.User, r.Password, password, func(ok bool, keys *scram.Keys) {
			switch {
			case c.state != stateLogin:
			case ok:
				c.login.keys = keys
				c.loginProved()
			default:
				c.loginDenied("wrong password")
			}
		})
		return
	}
	cr := p.credential(r)
	pr := &proof{client: c, password: password}
	if !cr.proven {
		p.enqueue(pr)
		return
	}
	p.compare(pr, cr, func() {
		switch {
		case c.state != stateLogin:
		case pr.right(cr) && cr.fresh(p.now()):
			c.loginProved()
		default:
			p.enqueue(pr)
		}
	})
}

// compare has a password compared with the proven one.
func (p *Proxy) compare(pr *proof, cr *credential, then func()) {
	known, password := cr.verifier, pr.password
	p.offload.run(p, func() any {
		return scram.NewVerifier(password, known.Salt, known.Iterations).StoredKey == known.StoredKey
	}, func(same any) {
		pr.compared, pr.same = known.StoredKey, same.(bool)
		then()
	})
}

func (p *Proxy) enqueue(pr *proof) {
	pr.cred = p.credential(&pr.client.login.route)
	pr.cred.queue = append(pr.cred.queue, pr)
	p.nextProof(pr.cred)
}

// nextProof tries the next password against the server, at most one at a time, and after a wrong one at most one each
// wrongInterval.
func (p *Proxy) nextProof(cr *credential) {
	for cr.trying == nil && len(cr.queue) > 0 {
		if wait := cr.wrongAt + wrongInterval - p.loop.Now(); cr.refused && wait > 0 {
			p.nextProofIn(cr, wait)
			return
		}
		pr := cr.queue[0]
		cr.queue[0] = nil
		cr.queue = cr.queue[1:]
		if pr.client.state != stateLogin {
			continue
		}
		pl := p.ensure(pr.client.login.route)
		if pl.route.User != cr.key.user || pl.route.server() != cr.key.server {
			pr.client.loginRefused("08006", databaseMoved) // this password is not for the new server
			continue
		}
		cr.trying = pr
		if cr.proven && pr.compared != cr.verifier.StoredKey {
			// Somebody has proved one while this client waited: perhaps the same.
			p.compare(pr, cr, func() {
				cr.trying = nil
				if pr.client.state == stateLogin && pr.right(cr) && cr.fresh(p.now()) {
					pr.client.loginProved()
				} else {
					cr.queue = append([]*proof{pr}, cr.queue...)
				}
				p.nextProof(cr)
			})
			return
		}
		if b := p.permit(pl, pr); b != nil {
			pr.tried, pr.dialing = true, true
			p.dialFor(b, pl, secret{password: pr.password}, func(d *dialed, err error) { p.opened(b, pl, secret{}, pr, d, err) })
			return
		}
		switch st := pl.pool.Stats(); {
		case pr.right(cr):
			// Every permit is at work, and it was right the last time.
			cr.trying = nil
			pr.client.loginProved()
		case cr.proven || st.Idle+st.Active+st.Testing > 0:
			// Later, until the client's login times out.
			cr.trying = nil
			cr.queue = append(cr.queue, pr)
			p.nextProofIn(cr, retryInterval)
			return
		default:
			pr.tried, pr.queued = true, true
			pr.client.login.proof = pr
			pr.client.loginProved()
			if pr.client.state != stateLogin {
				cr.trying = nil
			}
		}
	}
	if wait := cr.wrongAt + wrongInterval - p.loop.Now(); cr.refused && wait > 0 {
		p.nextProofIn(cr, wait) // until then it is remembered that one was wrong
		return
	}
	p.drop(cr)
}

func (p *Proxy) nextProofIn(cr *credential, wait time.Duration) {
	p.loop.Set(&cr.timer, p.loop.Now()+wait, func() {
		p.nextProof(cr)
		p.settle()
	})
}

// permit makes room for a trial. It never takes what those who have proved a password need: one server connection
// that lives, or the chance to open one.
func (p *Proxy) permit(pl *pooled, pr *proof) *pool.Backend {
	st := pl.pool.Stats()
	usable := st.Idle + st.Active + st.Testing
	if usable == 0 && !pr.cred.proven && pr.tried {
		return nil // the server did not answer: the pool knows when to ask again
	}
	spare := 0
	if usable == 0 && pr.cred.proven && st.Waiting > 0 {
		spare = 1
	}
	b := p.pools.Probe(p.now(), pl.pool, spare)
	if b == nil && usable > 1 && st.Idle > 0 && st.Closing == 0 {
		p.evict(pl)
	}
	return b
}

// evict closes one idle server connection of a pool.
func (p *Proxy) evict(pl *pooled) {
	var oldest *server
	for s := range p.servers {
		if s.pooled == pl && s.pb.State() == pool.Idle && (oldest == nil || s.id < oldest.id) {
			oldest = s
		}
	}
	if oldest != nil {
		oldest.discard(pool.Evicted)
	}
}

// serverSecret is what to log into the server with; proof is set when it is a client's password on trial. False when
// nothing may be tried now.
func (p *Proxy) serverSecret(pl *pooled) (secret, *proof, bool) {
	if pl.route.Password != "" || p.set.Auth != Passthrough {
		return pl.known(), nil, true
	}
	cr := p.credential(&pl.route)
	switch {
	case cr.proven:
		return cr.secret, nil, true
	case cr.trying != nil && cr.trying.queued && !cr.trying.dialing:
		cr.trying.dialing = true
		return secret{password: cr.trying.password}, cr.trying, true
	}
	return secret{}, nil, false
}

// proved: a login to the server with sec has succeeded; with a password on trial if pr is set.
func (p *Proxy) proved(pl *pooled, sec secret, pr *proof, learned *secret) {
	var cr *credential
	switch {
	case pr != nil:
		cr = pr.cred // not that of pl's route, which a reload may have changed
	case p.set.Auth == Passthrough && pl.route.Password == "":
		cr = p.creds[credentialKey{pl.route.server(), pl.route.User}]
	}
	if cr == nil || pr == nil && (!cr.proven || cr.secret != sec) {
		return
	}
	if ttl := p.set.PassthroughTTL; ttl > 0 {
		cr.until = p.loop.Now() + ttl
		p.loop.Set(&cr.expiry, cr.until, func() { p.expired(cr) })
	}
	if pr == nil {
		return
	}
	cr.proven, cr.refused, pr.proved = true, false, true
	switch {
	case learned != nil && learned.keys != nil:
		k := learned.keys
		cr.secret = *learned
		cr.verifier = scram.Verifier{Iterations: k.Iterations, Salt: k.Salt, StoredKey: sha256.Sum256(k.ClientKey[:]), ServerKey: k.ServerKey}
	default:
		cr.secret = secret{} // a server that asked for nothing needs nothing
		if learned != nil {
			cr.secret = *learned
		}
		cr.verifier = scram.NewVerifier(pr.password, randomBytes(16), scram.DefaultIterations)
	}
	pr.password = ""
	if cr.trying == pr {
		cr.trying = nil
	}
	if !pr.queued && pr.client.state == stateLogin {
		pr.client.loginProved()
	}
	p.nextProof(cr)
}

// disproved: a login to the server with sec, or with a password on trial, has failed; le is nil when the server did not
// answer.
func (p *Proxy) disproved(pl *pooled, sec secret, pr *proof, le *LoginError) {
	if pr == nil {
		if p.set.Auth == Passthrough && pl.route.Password == "" && le.wrongPassword() {
			// Unless somebody has proved another one meanwhile.
			if cr := p.creds[credentialKey{pl.route.server(), pl.route.User}]; cr != nil && cr.secret == sec {
				cr.forget()
				p.nextProof(cr)
			}
		}
		return
	}
	cr := pr.cred
	pr.dialing = false
	c := pr.client
	switch {
	case le.wrongPassword():
		cr.wrongAt, cr.refused = p.loop.Now(), true
		if c.state == stateLogin {
			c.loginDenied("server refused the password")
		}
	case le != nil && le.permanent():
		if c.state == stateLogin {
			c.loginRefused(le.Code, "server login failed: "+le.Message)
		}
	case c.state != stateLogin:
	case pr.queued:
		return // it waits in the pool, and the next attempt is for it again
	default:
		cr.queue = append(cr.queue, pr)
	}
	if cr.trying == pr {
		cr.trying = nil
	}
	if cr.proven {
		p.nextProofIn(cr, wrongInterval) // the pool asks the server itself
	} else {
		p.nextProofIn(cr, retryInterval)
	}
}

// moved refuses the clients whose password waits in the queue of a pool that has another server now.
func (p *Proxy) moved(pl *pooled) {
	for _, c := range slices.Clone(p.clients) {
		if c.pooled == pl && c.state == stateLogin && c.login.proof != nil {
			c.loginRefused("08006", databaseMoved)
		}
	}
}

// unproved: the pool has linked a client whose password is still on trial to a connection that another one opened.
func (p *Proxy) unproved(pr *proof) {
	cr := pr.cred
	pr.client.login.proof = nil
	pr.queued = false
	if pr.dialing {
		return // the trial goes on
	}
	if cr.trying == pr {
		cr.trying = nil
	}
	p.enqueue(pr)
}

// dropProof forgets a client that has left during its trial.
func (p *Proxy) dropProof(c *client) {
	if c.login == nil || c.login.proof == nil {
		return
	}
	pr, pl := c.login.proof, c.pooled
	cr := pr.cred
	if cr.trying == pr && !pr.dialing {
		cr.trying = nil
	}
	p.loop.Post(func() {
		p.nextProof(cr)
		if pl != nil {
			p.dropUnused(pl)
		}
		p.settle()
	})
}

// learn tells what to keep of a login that did not use SCRAM.
func learn(code uint32, user string, have secret) *secret {
	switch code {
	case pgwire.AuthMD5:
		if isMD5(have.password) {
			return &have
		}
		sum := md5.Sum([]byte(have.password + user))
		return &secret{password: "md5" + hex.EncodeToString(sum[:])}
	case pgwire.AuthCleartext:
		return &have
	}
	return nil
}
