package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/scram"
	"github.com/pgberth/pgberth/pkg/session"
)

const (
	// maxUserName and maxDatabaseName are PgBouncer's limits, in bytes; PostgreSQL itself cuts at 63.
	maxUserName     = 128
	maxDatabaseName = 64
	// maxPassword bounds a password message, in bytes.
	maxPassword = 4096
	// maxUnauthenticated is how many connections above max_client_conn may be in their login at once.
	maxUnauthenticated = 4096
)

// loginStage is what the login waits for.
type loginStage uint8

const (
	// loginFirst: the startup packet, perhaps after requests for encryption.
	loginFirst loginStage = iota
	// loginTLS: the TLS handshake.
	loginTLS
	// loginPassword: a password in clear.
	loginPassword
	// loginSASL: the SASL mechanism and the client's first message.
	loginSASL
	// loginProof: the client's last SASL message.
	loginProof
	// loginMD5: the answer to an md5 challenge.
	loginMD5
	// loginServer: the answer of somebody else: a derived key, a server, the pool.
	loginServer
)

// login is a client's login, from the accepted connection to ReadyForQuery. It runs in the loop; while busy nothing is
// read.
type login struct {
	stage   loginStage
	busy    bool
	passing bool // the listener allows passthrough
	timer   eventloop.Timer

	set            *Settings // what route was resolved by
	startup        pgwire.Startup
	want           session.Params // tracked parameters the client asked for
	route          Route
	known          bool // user and database exist
	askedEncrypted int
	scram          *scram.Server
	final          []byte // the last SASL message, until the welcome
	proof          *proof

	// stored is the secret that the client must prove; listed says that there is one. See prove.go.
	stored         string
	listed, exists bool
	dynamic        bool   // found by auth_query
	asked          uint64 // orders the times at which secrets are looked at
	reason         string // why nothing can prove it
	lookup         *lookup
	salt           [4]byte     // of the md5 challenge
	keys           *scram.Keys // that fit stored, once the client has proved them
	shake          *handshake
	placed         bool // has one of the places for a handshake
	queued         bool // waits for one
}

func (c *client) beginLogin(passing bool) {
	c.login = &login{passing: passing}
	limit := c.p.set.ClientLoginTimeout
	if limit <= 0 {
		return
	}
	c.p.loop.Set(&c.login.timer, c.p.loop.Now()+limit, func() {
		reason := "client_login_timeout"
		if c.login.stage == loginServer {
			reason = "client_login_timeout (server down)"
		}
		c.loginRefused("08P01", reason)
		c.p.settle()
	})
}

// loginInput handles what a client says during its login and returns the bytes that must wait.
func (c *client) loginInput(buf []byte) []byte {
	for len(buf) > 0 && c.state == stateLogin && !c.login.busy {
		n, err := c.loginMessage(buf)
		if err != nil {
			c.loginRefused("08P01", err.Error())
			return nil
		}
		if n == 0 {
			return buf
		}
		buf = buf[n:]
	}
	if c.state == stateIdle {
		return c.relay(buf)
	}
	return buf
}

// loginMessage handles the first message in buf and says how long it was; 0 when it is not whole.
func (c *client) loginMessage(buf []byte) (int, error) {
	if c.login.stage == loginFirst && c.direct(buf) {
		c.login.stage = loginTLS
	}
	if c.login.stage == loginTLS {
		return c.shakeHands(buf), nil
	}
	if c.login.stage == loginFirst {
		first, n, err := pgwire.ReadFirst(buf)
		if err != nil || n == 0 {
			return 0, err
		}
		return n, c.loginStart(first, len(buf)-n)
	}
	typ, size, ok, err := pgwire.Header(buf, maxPassword)
	switch {
	case err != nil:
		return 0, err
	case ok && typ == pgwire.Terminate:
		c.end("client close request")
		return 0, nil
	case ok && typ != pgwire.Password:
		return 0, fmt.Errorf("expected password response, got message type %s", pgwire.TypeName(typ))
	case !ok || len(buf) < size:
		return 0, nil
	}
	body := buf[pgwire.HeaderSize:size]
	switch c.login.stage {
	case loginPassword:
		return size, c.loginPassword(body)
	case loginSASL:
		return size, c.loginSASL(body)
	case loginProof:
		return size, c.loginProof(body)
	case loginMD5:
		return size, c.loginMD5(body)
	}
	return 0, errors.New("unexpected message during login")
}

// loginStart handles the first packets; behind is how many bytes came along.
func (c *client) loginStart(first pgwire.First, behind int) error {
	switch m := first.(type) {
	case pgwire.SSLRequest, pgwire.GSSENCRequest:
		if c.conn.tls != nil {
			return errors.New("received a request for encryption inside TLS")
		}
		if behind > 0 {
			// Somebody may have injected them before the encryption begins.
			return errors.New("received unencrypted data after SSL request")
		}
		if c.login.askedEncrypted++; c.login.askedEncrypted > 2 {
			return errors.New("too many requests for encryption")
		}
		if _, ssl := m.(pgwire.SSLRequest); ssl && c.offersTLS() {
			c.login.stage = loginTLS
			c.write([]byte{'S'})
			return nil
		}
		c.write([]byte{'N'})
	case pgwire.CancelRequest:
		c.login.busy = true
		c.p.cancelFor(m, func() { c.end("") })
	case pgwire.Startup:
		return c.loginStartup(m)
	}
	return nil
}

func (c *client) loginStartup(m pgwire.Startup) error {
	l, set := c.login, c.p.set
	switch {
	case len(m.User) > maxUserName:
		return fmt.Errorf("username too long: %d bytes, allowed are %d", len(m.User), maxUserName)
	case len(m.Database) > maxDatabaseName:
		return fmt.Errorf("database name too long: %d bytes, allowed are %d", len(m.Database), maxDatabaseName)
	}
	l.startup = m
	if set.ClientTLS.demanded() && c.conn.tls == nil && !c.isUnix {
		c.loginRefused("28000", "TLS required: connect with sslmode=require (client_tls_sslmode is "+set.ClientTLS.mode.String()+")")
		return nil
	}
	switch strings.ToLower(m.Replication) {
	case "", "0", "off", "false", "no":
	default:
		c.loginRefused("0A000", "replication connections are not pooled: connect to the database server directly")
		return nil
	}
	if c.p.stopping {
		c.loginRefused("57P01", "the pooler is shutting down")
		return nil
	}
	if set.MaxClients > 0 && len(c.p.clients) > set.MaxClients+maxUnauthenticated {
		c.loginRefused("53300", "no more connections allowed (max_client_conn)")
		return nil
	}
	if err := c.loginParameters(m); err != nil {
		return err
	}
	if spoken := spokenMinor(m.Minor); m.Minor != spoken || len(m.ProtocolOptions) > 0 {
		l.startup.Minor = spoken
		c.write(pgwire.AppendNegotiate(nil, uint32(spoken), m.ProtocolOptions))
	}
	l.startup.Parameters, l.startup.ProtocolOptions, l.startup.Options = nil, nil, ""
	l.set = set
	l.route, l.known = set.Route(m.Database, m.User)
	return c.loginSecret()
}

// loginParameters sorts the startup parameters into those that are kept per client, those that are ignored and others,
// which are refused: they would hold for one server connection only.
func (c *client) loginParameters(m pgwire.Startup) error {
	fromOptions, err := pgwire.ParseOptions(m.Options)
	if err != nil {
		if !c.ignored("options") {
			return err
		}
		fromOptions = nil
	}
	var want []pgwire.Parameter
	for i, kv := range append(fromOptions, m.Parameters...) {
		name, ok := c.p.tracked.Canonical(kv.Name)
		switch {
		case ok && kv.Value != "":
			want = append(want, pgwire.Parameter{Name: name, Value: kv.Value})
		case ok, c.ignored(kv.Name):
		case c.p.set.SessionState != StatePgBouncer && session.ValidParameter(kv.Name):
			want = append(want, pgwire.Parameter{Name: strings.ToLower(kv.Name), Value: kv.Value})
		case i < len(fromOptions):
			if c.ignored("options") {
				continue
			}
			return fmt.Errorf("unsupported startup parameter in options: %s", clipName(kv.Name))
		default:
			return fmt.Errorf("unsupported startup parameter: %s", clipName(kv.Name))
		}
	}
	c.login.want = session.MakeParams(want)
	return nil
}

func clipName(s string) string { return s[:min(len(s), 64)] }

func (c *client) ignored(name string) bool {
	for _, n := range c.p.set.IgnoreStartup {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// loginChallenge asks for proof. A user or database that does not exist is asked all the same.
func (c *client) loginChallenge() error {
	l, set := c.login, c.p.set
	switch set.Auth {
	case Any:
		c.loginProved()
	case Trust:
		if !l.exists {
			c.loginDenied(l.why("no such user"))
			return nil
		}
		c.loginProved()
	case Plain:
		l.stage = loginPassword
		c.write(pgwire.AppendAuth(nil, pgwire.AuthCleartext, nil))
	case Passthrough:
		if !l.passing {
			c.loginRefused("28000", "passthrough authentication is only offered on loopback addresses and Unix sockets")
			return nil
		}
		l.stage = loginPassword
		c.write(pgwire.AppendAuth(nil, pgwire.AuthCleartext, nil))
	case ScramSHA256:
		c.loginSCRAMBegin()
	case MD5:
		c.loginMD5Begin()
	case Cert:
		switch name, verified := c.conn.commonName(); {
		case !verified:
			c.certificateDenied("no verified certificate")
		case name != l.startup.User:
			c.certificateDenied("the certificate is for " + strconv.Quote(clipName(name)))
		case !l.exists:
			c.certificateDenied(l.why("no such user"))
		default:
			c.loginProved()
		}
	}
	return nil
}

// certificateDenied is loginDenied in PostgreSQL's words for certificates.
func (c *client) certificateDenied(reason string) {
	c.log().Info("login failed", "reason", reason)
	c.loginRefused("28000", fmt.Sprintf("certificate authentication failed for user \"%s\"", c.login.startup.User))
}

func (c *client) loginPassword(body []byte) error {
	l := c.login
	if len(body) == 0 || body[len(body)-1] != 0 || strings.IndexByte(string(body[:len(body)-1]), 0) >= 0 {
		return errors.New("invalid password packet")
	}
	password := string(body[:len(body)-1])
	if password == "" {
		c.loginDenied("empty password returned by client")
		return nil
	}
	l.busy = true
	l.stage = loginServer
	if c.p.set.Auth == Passthrough {
		if !l.known {
			c.loginDenied("no such database: " + clipName(l.startup.Database))
			return nil
		}
		c.p.judge(c, password)
		return nil
	}
	c.p.matches(l.startup.User, l.stored, password, func(ok bool, keys *scram.Keys) {
		l.keys = keys
		switch {
		case c.state != stateLogin:
		case !ok || !l.listed:
			c.loginDenied(l.why("wrong password"))
		case !l.known:
			c.loginDenied("no such database: " + clipName(l.startup.Database))
		default:
			c.loginProved()
		}
	})
	return nil
}

func (c *client) loginSASL(body []byte) error {
	mechanism, rest, ok := pgwire.NextString(body)
	if !ok || len(rest) < 4 {
		return errors.New("malformed SCRAM message: SASLInitialResponse is cut short")
	}
	if mechanism != scram.Mechanism {
		return fmt.Errorf("client selected SASL mechanism %q, offered is %s", clipName(mechanism), scram.Mechanism)
	}
	n := int32(binary.BigEndian.Uint32(rest))
	if n < 0 || int(n) != len(rest)-4 {
		return fmt.Errorf("malformed SCRAM message: length is %d, %d bytes follow", n, len(rest)-4)
	}
	reply, err := c.login.scram.First(rest[4:])
	if err != nil {
		return err
	}
	c.login.stage = loginProof
	c.write(pgwire.AppendAuth(nil, pgwire.AuthSASLContinue, reply))
	return nil
}

func (c *client) loginProof(body []byte) error {
	reply, err := c.login.scram.Final(body)
	switch {
	case errors.Is(err, scram.ErrProof) || (err == nil && !c.login.known):
		c.loginDenied(c.login.why("wrong password"))
		return nil
	case err != nil:
		return err
	}
	if isVerifier(c.login.stored) {
		keys := c.login.scram.Keys()
		c.login.keys = &keys
	}
	// It goes out with the welcome, in one write.
	c.login.final = pgwire.AppendAuth(nil, pgwire.AuthSASLFinal, reply)
	c.loginProved()
	return nil
}

// loginProved: the client is who it says. What is left is a place in the pool, and what to welcome it with.
func (c *client) loginProved() {
	l := c.login
	if l.set != c.p.set && c.pooled == nil {
		// A reload has come in between.
		proved := l.route.server()
		l.set = c.p.set
		route, ok := l.set.Route(l.startup.Database, l.startup.User)
		if ok && l.set.Auth == Passthrough && (route.server() != proved || route.User != l.route.User) {
			c.loginRefused("08006", databaseMoved)
			return
		}
		l.route, l.known = route, l.known && ok
	}
	if !l.known {
		c.loginRefused("3D000", "no such database: "+clipName(l.startup.Database))
		return
	}
	pl := c.pooled // set when the password was on trial in the pool's queue
	if pl == nil {
		pl = c.p.ensure(l.route)
		if err := c.p.pools.Connect(c.p.now(), pl.pool, &c.pc); err != nil {
			c.loginRefused("53300", err.Error())
			return
		}
		c.pooled = pl
	}
	if code, why, failing := c.p.failsFast(pl); failing {
		c.loginRefused(code, why)
		return
	}
	pl.keep(l)
	c.names = session.NewNames(&pl.statements)
	if pl.haveWelcome && l.proof == nil {
		c.welcome()
		return
	}
	// The first client learns from its first server connection how that is set up.
	l.busy = true
	l.stage = loginServer
	c.started = c.p.now()
	c.p.pools.Acquire(c.started, &c.pc)
	c.p.armTick()
}

// welcomed: the pool has linked a client in its login to a server connection. It only needed to see one.
func (c *client) welcomed() {
	s := c.server
	c.server, s.client = nil, nil
	s.link.Serve(nil)
	c.started = 0
	c.p.pools.Release(c.p.now(), s.pb)
	if pr := c.login.proof; pr != nil && !pr.proved {
		c.p.unproved(pr)
		return
	}
	c.welcome()
}

// welcome ends the login.
func (c *client) welcome() {
	l := c.login
	c.p.loop.Unset(&l.timer)
	g := c.pooled.greet(l.want, c.p.tracked)
	c.params, c.began = g.tracked, g.tracked
	if c.createsTemporary() {
		c.needSession()
	}
	out := c.p.loop.Buffers.Lend(len(l.final) + len(g.packets) + 64) // a lent buffer must not grow
	out = append(out, l.final...)
	out = append(out, g.packets...)
	c.key = c.p.newKey(c)
	key := c.key.bytes()
	out = pgwire.AppendBackendKey(out, binary.BigEndian.Uint32(key), key[4:])
	out = pgwire.AppendReady(out, pgwire.StatusIdle)
	c.write(out)
	c.p.loop.Buffers.Return(out)
	c.quiet = c.p.now()
	c.timeouts = c.pooled.timeoutsOf(&l.route)
	c.p.timed(c.timeouts.shortest())
	c.login = nil
	c.state = stateIdle
	c.counters().Logins++
	if c.p.set.LogConnections {
		c.log().Info("client logged in", "login_ms", (c.p.loop.Clock() - c.since).Milliseconds(), "tls", c.conn.version())
	}
	if len(c.in) > 0 || c.readable {
		c.p.loop.Again(&c.conn.Conn)
	}
}

// newKey makes an unguessable cancel key; the pid part is positive, as clients expect.
func (p *Proxy) newKey(c *client) cancelKey {
	for {
		k := cancelKey{size: keySize}
		if c.login.startup.Minor >= 2 {
			k.size = longKeySize
		}
		copy(k.key[:k.size], randomBytes(int(k.size)))
		k.key[0] &= 0x7f
		if _, taken := p.keys[k]; !taken && k != (cancelKey{}) {
			p.keys[k] = c
			return k
		}
	}
}

// loginDenied: whatever is wrong with user, database or password, the client hears the same; the log tells.
func (c *client) loginDenied(reason string) {
	c.log().Info("login failed", "reason", reason)
	c.counters().LoginFailures++
	user := c.login.startup.User
	c.fail("28P01", fmt.Sprintf("password authentication failed for user \"%s\"", user))
	c.linger("")
}

// loginRefused ends a login with an error of its own.
func (c *client) loginRefused(code, message string) {
	if c.state != stateLogin {
		return
	}
	c.counters().LoginFailures++
	if c.p.set.LogPoolerErrors {
		c.log().Info("login refused", "sqlstate", code, "reason", message)
	}
	c.fail(code, message)
	c.linger("")
}

// refusal words a Fail of the pool for the client.
func (c *client) refusal(why pool.Reason) (code, message string) {
	switch why {
	case pool.LoginFailed:
		if r := c.pooled.refusal; r != nil {
			return r.Code, "server login failed: " + r.Message
		}
		return "08006", why.String()
	case pool.QueryWaitTimeout:
		return "53300", fmt.Sprintf("query_wait_timeout: no server connection became free within %v",
			c.pooled.pool.Settings().QueryWaitTimeout.Round(time.Millisecond))
	case pool.DatabaseRemoved:
		return "3D000", why.String()
	}
	return "08006", why.String()
}
