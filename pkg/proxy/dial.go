package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/scram"
	"github.com/pgberth/pgberth/pkg/session"
)

// A server's login is bounded: so many messages, each of so many bytes, and so many bytes of parameters, which are kept.
const (
	maxLoginMessages   = 1000
	maxLoginMessage    = 32 << 10
	maxLoginParameters = 64 << 10
)

// secret is what the pooler can prove to a server: a password, an md5 hash, or SCRAM keys.
type secret struct {
	password string // in clear, or "md5…"
	keys     *scram.Keys
	stored   bool // keys fit a stored verifier, which may not be the server's own
}

type dialSpec struct {
	host           string
	port           int
	database, user string
	secret         secret
	startup        map[string]string
	timeout        time.Duration
	keepAlive      KeepAlive
	to             candidate // the address, of host and port
	target         TargetSession
	connectQuery   string
	tls            *ServerTLS // nil is to ask for none
}

// dialed is a server connection after its login. Whoever holds it closes fd.
type dialed struct {
	fd      int
	user    string
	pid     uint32
	key     []byte
	params  []pgwire.Parameter
	welcome session.Params // the same
	network string
	remote  string
	rest    []byte  // read beyond the login
	secret  *secret // what proved right, to keep instead of a password
	at      candidate
	role    serverRole // where the database asks for one
	tls     *secured
	secure  cancelTLS
}

func (d *dialed) close() { _ = unix.Close(d.fd) }

// LoginError is what a server answered to a login.
type LoginError struct {
	pgwire.ErrorFields
	routine string // of the server's source that raised it
	during  string // the setting whose query it answers; "" is the login itself
}

func (e *LoginError) Error() string {
	if e.during != "" {
		return fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code)
	}
	return fmt.Sprintf("server refused the login: %s (SQLSTATE %s)", e.Message, e.Code)
}

// wrongPassword: the server knows another one, or none, for the role. False of nil.
func (e *LoginError) wrongPassword() bool {
	return e != nil && e.during == "" && (e.Code == "28P01" || e.Code == "28000")
}

// permanent: waiting does not help. 53300 and 57P03 are the server's way to say later; a reply without SQLSTATE says
// nothing.
func (e *LoginError) permanent() bool {
	if e.during != "" {
		return !transient(e.Code)
	}
	switch e.Code {
	case "", "53300", "57P03", "57P01", "57P02":
		return false
	}
	return true
}

// dialOnce connects and logs in, inside TLS if so asked and possible. It blocks; ctx and the spec's timeout end it.
// Errors of the server are *LoginError.
func dialOnce(ctx context.Context, spec dialSpec, encrypted bool) (*dialed, error) {
	if spec.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, spec.timeout)
		defer stop()
	}
	network, addr := spec.to.address()
	d := net.Dialer{KeepAlive: -1, Control: spec.keepAlive.control}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect failed: %w", err)
	}
	// The deadline of ctx, and its end, reach the blocking reads through the connection.
	unwatch := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()
	defer func() { _ = conn.Close() }() // on success fd is a duplicate

	l := serverLogin{conn: conn, spec: spec, out: &dialed{user: spec.user, network: network, remote: addr}}
	if network == "tcp" {
		// A cancel must go to the same address, not to another of the same name.
		l.out.remote = conn.RemoteAddr().String()
	}
	if encrypted && network == "tcp" {
		err = l.encrypt()
	}
	if err == nil {
		err = l.run()
	}
	if err != nil {
		if ctx.Err() != nil && !errors.As(err, new(*LoginError)) {
			err = fmt.Errorf("connect timeout: the server did not finish the login within %v", spec.timeout)
		}
		return nil, err
	}
	if !unwatch() {
		return nil, fmt.Errorf("connect timeout: the server did not finish the login within %v", spec.timeout)
	}
	l.out.welcome = session.MakeParams(l.out.params) // here, where it holds nobody up
	l.out.fd, err = duplicate(conn, spec.keepAlive)
	if err != nil {
		return nil, err
	}
	return l.out, nil
}

// duplicate takes the descriptor out of the runtime's hands: the duplicate shares the socket and stays non-blocking.
func duplicate(conn net.Conn, ka KeepAlive) (int, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, errors.New("connection has no descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
		if dupErr == nil && conn.RemoteAddr().Network() == "tcp" {
			tune(fd, ka)
		}
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, err
	}
	return fd, nil
}

// serverLogin is one login to a server, from the startup packet to ReadyForQuery.
type serverLogin struct {
	conn  net.Conn
	spec  dialSpec
	buf   []byte
	out   *dialed
	scram *scram.Client
	// proved: the server has shown by SCRAM that it knows the password.
	proved   bool
	authOK   bool
	reported int // bytes of parameters
	// endPoint identifies the server's certificate to SCRAM; nil without TLS.
	endPoint []byte
}

func (l *serverLogin) run() error {
	params := []pgwire.Parameter{{Name: "user", Value: l.spec.user}, {Name: "database", Value: l.spec.database}}
	for _, name := range sortedKeys(l.spec.startup) {
		params = append(params, pgwire.Parameter{Name: name, Value: l.spec.startup[name]})
	}
	if _, err := l.conn.Write(pgwire.AppendStartup(nil, params)); err != nil {
		return fmt.Errorf("connect failed: %w", err)
	}
	for range maxLoginMessages {
		typ, body, err := l.next()
		if err != nil {
			return err
		}
		done, err := l.handle(typ, body)
		if err != nil {
			return err
		}
		if done {
			if err := l.prepare(); err != nil {
				return err
			}
			return l.leftOver()
		}
	}
	return fmt.Errorf("server sent more than %d messages during login", maxLoginMessages)
}

func (l *serverLogin) handle(typ byte, body []byte) (done bool, err error) {
	switch typ {
	case pgwire.Authentication:
		return false, l.authenticate(body)
	case pgwire.ErrorResponse:
		return false, loginError(body)
	case pgwire.NoticeResponse, pgwire.NotificationResponse:
		return false, nil
	case pgwire.NegotiateProtocol:
		return false, errors.New("server wants to negotiate the protocol although 3.0 was asked for")
	}
	if !l.authOK {
		return false, fmt.Errorf("server sent message %s before it had accepted the login", pgwire.TypeName(typ))
	}
	switch typ {
	case pgwire.ParameterStatus:
		name, value, ok := pgwire.ReadParameterStatus(body)
		if !ok {
			return false, errors.New("server sent a broken ParameterStatus packet")
		}
		if l.reported += len(body); l.reported > maxLoginParameters {
			return false, fmt.Errorf("server sent more than %d bytes of parameters during login", maxLoginParameters)
		}
		l.out.params = append(l.out.params, pgwire.Parameter{Name: name, Value: value})
	case pgwire.BackendKeyData:
		if len(body) != 8 {
			return false, fmt.Errorf("server sent a cancel key of %d bytes, allowed are 4", max(len(body)-4, 0))
		}
		l.out.pid = binary.BigEndian.Uint32(body)
		l.out.key = append([]byte(nil), body[4:]...)
	case pgwire.ReadyForQuery:
		if len(body) != 1 || body[0] != pgwire.StatusIdle {
			return false, errors.New("server is not idle after its login")
		}
		return true, nil
	default:
		return false, fmt.Errorf("server sent message %s during login", pgwire.TypeName(typ))
	}
	return false, nil
}

// leftOver looks at what came along with ReadyForQuery. Relayed later, it would be taken for the answer to a query.
func (l *serverLogin) leftOver() error {
	for {
		typ, size, ok, err := pgwire.Header(l.buf, maxLoginMessage)
		if err != nil {
			return err
		}
		if ok && !harmlessIdle(typ) {
			return fmt.Errorf("server sent message %s behind its login", pgwire.TypeName(typ))
		}
		if !ok || len(l.buf) < size {
			l.out.rest = l.buf
			return nil
		}
		if _, err := l.handle(typ, l.buf[pgwire.HeaderSize:size]); err != nil {
			return err
		}
		l.buf = l.buf[size:]
	}
}

// authenticate answers one Authentication message.
func (l *serverLogin) authenticate(body []byte) error {
	if len(body) < 4 {
		return errors.New("server sent a broken authentication message")
	}
	code, data := binary.BigEndian.Uint32(body), body[4:]
	if l.authOK {
		return errors.New("server asked for authentication twice")
	}
	have := l.spec.secret
	switch code {
	case pgwire.AuthOK:
		if l.scram != nil && !l.proved {
			return errors.New("server accepted the login without proving that it knows the password")
		}
		l.authOK = true
		return nil
	case pgwire.AuthCleartext:
		if have.password == "" || isMD5(have.password) {
			return cannotProve("server asks for a clear-text password and none is known")
		}
		l.out.secret = learn(code, l.spec.user, have)
		return l.say(append([]byte(have.password), 0))
	case pgwire.AuthMD5:
		if len(data) != 4 {
			return fmt.Errorf("server sent an md5 salt of %d bytes, allowed are 4", len(data))
		}
		if have.password == "" {
			return cannotProve("server asks for an md5 password and none is known")
		}
		l.out.secret = learn(code, l.spec.user, have)
		return l.say(append([]byte(scram.MD5(l.spec.user, have.password, [4]byte(data))), 0))
	case pgwire.AuthSASL:
		return l.saslBegin(data)
	case pgwire.AuthSASLContinue:
		if l.scram == nil {
			return errors.New("server continued a SASL exchange that was not begun")
		}
		final, err := l.scram.Challenge(data)
		if errors.Is(err, scram.ErrKeys) && l.spec.secret.stored {
			return cannotProve("the server's SCRAM salt or iterations are not those of the stored verifier; store the server's own, of pg_authid, or a plain password")
		}
		if errors.Is(err, scram.ErrKeys) {
			// What the server would say if it were asked: the keys that are known do not fit any more.
			return &LoginError{ErrorFields: pgwire.ErrorFields{Severity: pgwire.Fatal, Code: "28P01", Message: "the password was set anew on the server"}}
		}
		if err != nil {
			return err
		}
		return l.say(final)
	case pgwire.AuthSASLFinal:
		if l.scram == nil || l.proved {
			return errors.New("server ended a SASL exchange that was not under way")
		}
		if err := l.scram.Verify(data); err != nil {
			return err
		}
		l.proved = true
		keys := l.scram.Keys()
		l.out.secret = &secret{keys: &keys}
		return nil
	}
	return fmt.Errorf("server asks for authentication method %d, supported are trust, clear text, md5 and SCRAM-SHA-256", code)
}

func (l *serverLogin) saslBegin(mechanisms []byte) error {
	if l.scram != nil {
		return errors.New("server began a SASL exchange twice")
	}
	offered, bound := false, false
	for rest := mechanisms; len(rest) > 0 && rest[0] != 0; {
		m, next, ok := pgwire.NextString(rest)
		if !ok {
			break
		}
		offered = offered || m == scram.Mechanism
		bound = bound || m == scram.MechanismPlus
		rest = next
	}
	if !offered && (!bound || l.endPoint == nil) {
		return errors.New("server offers no SASL mechanism that is supported: SCRAM-SHA-256")
	}
	nonce := make([]byte, 18)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	have := l.spec.secret
	switch {
	case have.keys != nil:
		l.scram = scram.NewClientFromKeys(*have.keys, nonce)
	case have.password != "" && !isMD5(have.password):
		l.scram = scram.NewClient(have.password, nonce)
	case isMD5(have.password):
		return cannotProve("server asks for SCRAM-SHA-256 and only an md5 hash is known")
	default:
		return cannotProve("server asks for SCRAM-SHA-256 and no password is known")
	}
	mechanism := l.bind(bound)
	first := l.scram.First()
	body := append([]byte(mechanism), 0)
	body = binary.BigEndian.AppendUint32(body, uint32(len(first)))
	return l.say(append(body, first...))
}

func (l *serverLogin) say(body []byte) error {
	if _, err := l.conn.Write(pgwire.AppendPassword(nil, body)); err != nil {
		return fmt.Errorf("connect failed: %w", err)
	}
	return nil
}

// next reads one message; body is valid until the next call.
func (l *serverLogin) next() (typ byte, body []byte, err error) {
	for {
		typ, size, ok, err := pgwire.Header(l.buf, maxLoginMessage)
		if err != nil {
			return 0, nil, err
		}
		if ok && len(l.buf) >= size {
			body := l.buf[pgwire.HeaderSize:size]
			l.buf = l.buf[size:]
			return typ, body, nil
		}
		chunk := make([]byte, 4096)
		n, err := l.conn.Read(chunk)
		l.buf = append(l.buf, chunk[:n]...)
		if n == 0 && err != nil {
			return 0, nil, fmt.Errorf("server closed the connection during login: %w", err)
		}
	}
}

func isMD5(s string) bool { return scram.IsMD5(s) }

func isVerifier(s string) bool { return strings.HasPrefix(s, scram.Mechanism+"$") }

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
