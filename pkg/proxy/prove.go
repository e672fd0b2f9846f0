package proxy

import (
	"errors"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/scram"
)

// loginSecret finds what the client has to prove: in the user list, else by auth_query.
func (c *client) loginSecret() error {
	l, set := c.login, c.p.set
	l.stored, l.listed = set.Users[l.startup.User]
	l.exists = l.listed || set.Users == nil
	c.p.asks++
	l.asked = c.p.asks
	switch {
	case !l.listed:
		l.reason = "no such user"
	case l.stored == "":
		l.reason = "the user's secret in the user list is empty"
	}
	if l.listed || !l.known || set.Lookup == nil || set.Auth == Any || set.Auth == Passthrough {
		return c.loginChallenge()
	}
	lk, ok := set.Lookup(l.startup.Database)
	if !ok {
		return c.loginChallenge()
	}
	l.busy = true
	l.stage = loginServer
	c.p.lookUp(c, &lk)
	return nil
}

// found goes on with what auth_query has found.
func (c *client) found(f finding) {
	l := c.login
	l.busy = false
	if f.refusal != "" {
		c.loginRefused(f.code, f.refusal)
		return
	}
	l.stored, l.listed, l.exists, l.reason = f.secret, f.found, f.exists, f.reason
	l.dynamic, l.asked = f.found, f.asked
	if err := c.loginChallenge(); err != nil {
		c.loginRefused("08P01", err.Error())
		return
	}
	if c.state == stateLogin && !l.busy && (len(c.in) > 0 || c.readable) {
		c.p.loop.Again(&c.conn.Conn)
	}
}

// loginMD5Begin sends a challenge. A user whose secret is a SCRAM verifier is asked for SCRAM.
func (c *client) loginMD5Begin() {
	l := c.login
	scrams := isVerifier(l.stored)
	if !l.listed || l.stored == "" {
		scrams = c.p.census.of(c.p.set).mockSCRAM(c.p.mock, l.startup.User)
	}
	if scrams {
		c.loginSCRAMBegin()
		return
	}
	l.stage = loginMD5
	l.salt = [4]byte(randomBytes(4))
	c.write(pgwire.AppendAuth(nil, pgwire.AuthMD5, l.salt[:]))
}

func (c *client) loginSCRAMBegin() {
	l := c.login
	l.stage = loginSASL
	l.busy = true
	if isMD5(l.stored) {
		l.reason = "the stored secret is an md5 hash, which cannot prove SCRAM-SHA-256"
	}
	c.p.verifierOf(l.startup.User, l.stored, func(v scram.Verifier, ok bool) {
		if c.state != stateLogin {
			return
		}
		l.known = l.known && l.listed && ok
		l.busy = false
		l.scram = scram.NewServer(v, randomBytes(18))
		c.write(pgwire.AppendAuth(nil, pgwire.AuthSASL, append([]byte(scram.Mechanism), 0, 0)))
	})
}

// loginMD5 judges the answer to an md5 challenge.
func (c *client) loginMD5(body []byte) error {
	l := c.login
	if len(body) == 0 || body[len(body)-1] != 0 {
		return errors.New("invalid password packet")
	}
	// What nobody can have answered stands in for a secret that is not there, so that this takes the same time.
	stored := l.stored
	there := l.listed && stored != ""
	if !there {
		stored = "md5" + string(hexed(randomBytes(16)))
	}
	same := equal(scram.MD5(l.startup.User, stored, l.salt), string(body[:len(body)-1]))
	switch {
	case !same || !there:
		c.loginDenied(l.why("wrong password"))
	case !l.known:
		c.loginDenied("no such database: " + clipName(l.startup.Database))
	default:
		c.loginProved()
	}
	return nil
}

// why is the reason of a denial for the log.
func (l *login) why(otherwise string) string {
	if l.reason != "" {
		return l.reason
	}
	return otherwise
}

// keep has the pool log in at its server with what this client has proved, where nothing else is configured: the secret
// of auth_query, or the keys that fit the stored verifier, if it is the server's own. What was stored last counts, not
// what was proved last.
func (pl *pooled) keep(l *login) {
	if l.startup.User != pl.route.User {
		return // forced: what proves this client does not prove that user
	}
	learned := secret{}
	switch {
	case l.keys != nil:
		learned.keys, learned.stored = l.keys, true
	case l.dynamic && !isVerifier(l.stored):
		learned.password = l.stored
	default:
		return
	}
	if l.asked < pl.learnedOf {
		return
	}
	pl.learnedOf = l.asked
	if !learned.same(pl.learned) {
		pl.learned = learned
		pl.refusal = nil
	}
}

// outdated: a client has proved another secret since this one was taken to the server, so that its failure says nothing.
func (pl *pooled) outdated(sec secret) bool {
	return pl.learned != (secret{}) && !sec.same(pl.known())
}

// known is the secret for the pool's server connections.
func (pl *pooled) known() secret {
	if pw := pl.route.Password; pw != "" && !isVerifier(pw) {
		return secret{password: pw}
	}
	return pl.learned
}

func (s secret) same(t secret) bool {
	if s.keys == nil || t.keys == nil {
		return s == t
	}
	return s.keys.ClientKey == t.keys.ClientKey && s.keys.ServerKey == t.keys.ServerKey &&
		s.keys.Iterations == t.keys.Iterations && string(s.keys.Salt) == string(t.keys.Salt)
}

// cannotProve is a login that has to fail: nothing that is known proves the user to the server.
func cannotProve(why string) error {
	return &LoginError{ErrorFields: pgwire.ErrorFields{Severity: pgwire.Fatal, Code: "28P01", Message: why}}
}
