package proxy

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/scram"
)

// wrongInterval is how often a password that may be wrong is tried against a server, per user.
const wrongInterval = time.Second

// maxDerivations bounds the keys derived at once outside the loop: each takes a processor for a millisecond or more.
const maxDerivations = 2

// credentialKey names a role of a database server.
type credentialKey struct{ server, user string }

// credential is what passthrough has learned of a role: enough to judge further clients and to open further server
// connections, but not the password, wherever the server allows that.
type credential struct {
	// proven: verifier and secret are set.
	proven   bool
	verifier scram.Verifier
	secret   secret
	until    time.Duration // loop time; 0 is for ever

	// queue are clients whose password is to be tried against the server, one at a time.
	queue  []*proof
	trying *proof
	// wrongAt is when the server last refused one.
	wrongAt time.Duration
	refused bool
	timer   eventloop.Timer
}

// proof is one client's password on trial.
type proof struct {
	client   *client
	cred     *credential
	password string
	dialing  bool
	// beside: the role has a proven password already and this is another one. It is tried on a connection of its own,
	// which must leave a permit for the proven one.
	beside bool
}

func (p *Proxy) credential(r *Route) *credential {
	key := credentialKey{r.server(), r.User}
	cr := p.creds[key]
	if cr == nil {
		cr = &credential{}
		p.creds[key] = cr
	}
	if cr.proven && cr.until != 0 && p.now() >= cr.until {
		cr.forget()
	}
	return cr
}

func (cr *credential) forget() {
	cr.proven = false
	cr.verifier = scram.Verifier{}
	cr.secret = secret{}
}

// judge decides about a passthrough client's password: by what is known of the role, else by the server.
func (p *Proxy) judge(c *client, password string) {
	cr := p.credential(&c.login.route)
	pr := &proof{client: c, cred: cr, password: password}
	if !cr.proven {
		p.enqueue(pr)
		return
	}
	known := cr.verifier
	p.offload.run(p, func() any {
		return scram.NewVerifier(password, known.Salt, known.Iterations).StoredKey == known.StoredKey
	}, func(same any) {
		switch {
		case c.state != stateLogin:
		case same.(bool):
			c.loginProved()
		default:
			p.enqueue(pr)
		}
	})
}

func (p *Proxy) enqueue(pr *proof) {
	pr.cred.queue = append(pr.cred.queue, pr)
	p.nextProof(pr.cred)
}

// nextProof tries the next password against the server, at most one at a time, and after a wrong one at most one each
// wrongInterval.
func (p *Proxy) nextProof(cr *credential) {
	for cr.trying == nil && len(cr.queue) > 0 {
		if wait := cr.wrongAt + wrongInterval - p.loop.Now(); cr.refused && wait > 0 {
			p.loop.Set(&cr.timer, p.loop.Now()+wait, func() {
				p.nextProof(cr)
				p.settle()
			})
			return
		}
		pr := cr.queue[0]
		cr.queue = cr.queue[1:]
		if pr.client.state != stateLogin {
			continue
		}
		if cr.proven && !pr.beside {
			// Somebody has proved one while this client waited: perhaps the same.
			pr.beside = true
			known := cr.verifier
			cr.trying = pr
			p.offload.run(p, func() any {
				return scram.NewVerifier(pr.password, known.Salt, known.Iterations).StoredKey == known.StoredKey
			}, func(same any) {
				cr.trying = nil
				if same.(bool) && pr.client.state == stateLogin {
					pr.client.loginProved()
				} else {
					cr.queue = append([]*proof{pr}, cr.queue...)
				}
				p.nextProof(cr)
			})
			return
		}
		cr.trying = pr
		if cr.proven {
			p.tryBeside(pr)
			return
		}
		// The client waits in the pool like any other; the connection opened for it logs in with its password.
		pr.client.login.proof = pr
		pr.client.loginProved()
		if pr.client.state != stateLogin {
			cr.trying = nil
		}
	}
}

// tryBeside tries another password than the proven one on a connection of its own.
func (p *Proxy) tryBeside(pr *proof) {
	c, cr := pr.client, pr.cred
	pl := p.ensure(c.login.route)
	b := p.pools.Probe(p.now(), pl.pool, 1)
	if b == nil {
		// No permit to spare: later, until the client's login times out.
		cr.trying = nil
		cr.queue = append(cr.queue, pr)
		p.loop.Set(&cr.timer, p.loop.Now()+100*time.Millisecond, func() {
			p.nextProof(cr)
			p.settle()
		})
		return
	}
	pr.dialing = true
	p.dialFor(b, pl, secret{password: pr.password}, func(d *dialed, err error) { p.opened(b, pl, pr, d, err) })
}

// serverSecret is what to log into the server with; proof is set when it is a client's password on trial. False when
// nothing may be tried now.
func (p *Proxy) serverSecret(pl *pooled) (secret, *proof, bool) {
	if pl.route.Password != "" || p.set.Auth != Passthrough {
		return secret{password: pl.route.Password}, nil, true
	}
	cr := p.credential(&pl.route)
	switch {
	case cr.proven:
		return cr.secret, nil, true
	case cr.trying != nil && !cr.trying.dialing && !cr.trying.beside:
		cr.trying.dialing = true
		return secret{password: cr.trying.password}, cr.trying, true
	}
	return secret{}, nil, false
}

// proved: a login to the server has succeeded, with a password on trial if pr is set.
func (p *Proxy) proved(pl *pooled, pr *proof, learned *secret) {
	if p.set.Auth != Passthrough || pl.route.Password != "" {
		return
	}
	cr := p.credential(&pl.route)
	if ttl := p.set.PassthroughTTL; ttl > 0 {
		cr.until = p.loop.Now() + ttl
	}
	if pr == nil {
		return
	}
	cr.proven, cr.refused = true, false
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
	if pr.beside && pr.client.state == stateLogin {
		pr.client.loginProved()
	}
	p.nextProof(cr)
}

// disproved: a login to the server has failed; le is nil when the server did not answer.
func (p *Proxy) disproved(pl *pooled, pr *proof, le *LoginError) {
	if p.set.Auth != Passthrough || pl.route.Password != "" {
		return
	}
	cr := p.credential(&pl.route)
	wrong := le != nil && (le.Code == "28P01" || le.Code == "28000")
	if pr == nil {
		if wrong {
			cr.forget()
		}
		return
	}
	pr.dialing = false
	c := pr.client
	switch {
	case wrong:
		cr.wrongAt, cr.refused = p.loop.Now(), true
		if c.state == stateLogin {
			c.loginDenied("server refused the password")
		}
	case le != nil && le.permanent():
		if c.state == stateLogin {
			c.loginRefused(le.Code, "server login failed: "+le.Message)
		}
	case pr.beside && c.state == stateLogin:
		cr.queue = append(cr.queue, pr)
	case c.state == stateLogin:
		return // it waits in the pool, and the next attempt is for it again
	}
	if cr.trying == pr {
		cr.trying = nil
	}
	p.loop.Set(&cr.timer, p.loop.Now()+100*time.Millisecond, func() {
		p.nextProof(cr)
		p.settle()
	})
}

// dropProof forgets a client that has left during its trial.
func (p *Proxy) dropProof(c *client) {
	if c.login == nil || c.login.proof == nil {
		return
	}
	pr := c.login.proof
	if cr := pr.cred; cr.trying == pr && !pr.dialing {
		cr.trying = nil
		p.loop.Post(func() {
			p.nextProof(cr)
			p.settle()
		})
	}
}

// derivedVerifier is the verifier of a plain secret in the user list, kept because making one takes milliseconds.
type derivedVerifier struct {
	secret   string
	verifier scram.Verifier
}

// verifierOf finds the verifier that proves a user of the user list; ok is false, and the verifier cannot be proved, for
// a user without one. then runs in the loop, perhaps at once.
func (p *Proxy) verifierOf(user, stored string, then func(v scram.Verifier, ok bool)) {
	iterations := p.set.ScramIterations
	switch {
	case stored == "" || isMD5(stored):
		then(scram.MockVerifier(p.mock, user, iterations), false)
	case isVerifier(stored):
		v, err := scram.ParseVerifier(stored)
		if err != nil {
			p.log.Error("user list has a broken SCRAM verifier", "user", user, "error", err)
			v = scram.MockVerifier(p.mock, user, iterations)
		}
		then(v, err == nil)
	default:
		if d, ok := p.derived[user]; ok && d.secret == stored && d.verifier.Iterations == iterations {
			then(d.verifier, true)
			return
		}
		p.offload.run(p, func() any { return scram.NewVerifier(stored, randomBytes(16), iterations) }, func(v any) {
			p.derived[user] = derivedVerifier{stored, v.(scram.Verifier)}
			then(v.(scram.Verifier), true)
		})
	}
}

// matches compares a password in clear with a secret of the user list in any of its forms.
func (p *Proxy) matches(user, stored, password string, then func(bool)) {
	switch {
	case stored == "":
		then(false)
	case isMD5(stored):
		sum := md5.Sum([]byte(password + user))
		then(equal("md5"+hex.EncodeToString(sum[:]), stored))
	case isVerifier(stored):
		v, err := scram.ParseVerifier(stored)
		if err != nil {
			then(false)
			return
		}
		p.offload.run(p, func() any {
			return scram.NewVerifier(password, v.Salt, v.Iterations).StoredKey == v.StoredKey
		}, func(same any) { then(same.(bool)) })
	default:
		then(equal(password, stored))
	}
}

// offload runs a few functions at a time outside the loop, the rest waits in order.
type offload struct {
	running int
	waiting []func()
}

// run computes fn on a goroutine and hands its result to then in the loop.
func (o *offload) run(p *Proxy, fn func() any, then func(any)) {
	start := func() {
		o.running++
		p.work(func() {
			v := fn()
			p.loop.Post(func() {
				o.running--
				if len(o.waiting) > 0 {
					next := o.waiting[0]
					o.waiting = o.waiting[1:]
					next()
				}
				then(v)
				p.settle()
			})
		})
	}
	if o.running < maxDerivations {
		start()
	} else {
		o.waiting = append(o.waiting, start)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it cannot fail: the runtime aborts instead
	return b
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
