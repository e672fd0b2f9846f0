package proxy

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"

	"github.com/pgberth/pgberth/pkg/scram"
)

// maxDerivations bounds the keys derived at once outside the loop: each takes a processor for a millisecond or more.
const maxDerivations = 2

// derivedVerifier is the verifier of a plain secret in the user list, kept because making one takes milliseconds.
type derivedVerifier struct {
	secret   string
	verifier scram.Verifier
}

// verifierOf finds the verifier that proves a user's stored secret; ok is false, and the verifier cannot be proved, for
// a user without one. then runs in the loop, perhaps at once.
func (p *Proxy) verifierOf(user, stored string, then func(v scram.Verifier, ok bool)) {
	iterations := p.set.ScramIterations
	mock := func() scram.Verifier {
		return scram.MockVerifier(p.mock, user, p.census.of(p.set).mockIterations(iterations))
	}
	switch {
	case stored == "" || isMD5(stored):
		then(mock(), false)
	case isVerifier(stored):
		if d, ok := p.derived[user]; ok && d.secret == stored {
			then(d.verifier, true)
			return
		}
		v, err := scram.ParseVerifier(stored)
		if err == nil {
			p.derived[user] = derivedVerifier{stored, v}
		} else {
			p.log.Error("a stored SCRAM verifier is broken", "user", user, "error", err)
			v = mock()
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

// matches compares a password in clear with a stored secret in any of its forms; of a verifier it tells the keys.
func (p *Proxy) matches(user, stored, password string, then func(ok bool, keys *scram.Keys)) {
	switch {
	case stored == "":
		then(false, nil)
	case isMD5(stored):
		sum := md5.Sum([]byte(password + user))
		then(equal("md5"+hex.EncodeToString(sum[:]), stored), nil)
	case isVerifier(stored):
		v, err := scram.ParseVerifier(stored)
		if err != nil {
			then(false, nil)
			return
		}
		p.offload.run(p, func() any {
			if keys, ok := v.Match(password); ok {
				return &keys
			}
			return (*scram.Keys)(nil)
		}, func(v any) {
			keys := v.(*scram.Keys)
			then(keys != nil, keys)
		})
	default:
		then(equal(password, stored), nil)
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
