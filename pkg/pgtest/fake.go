package pgtest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// patience bounds how long a Fake waits for something that should come.
const patience = 30 * time.Second

// Fake is a server which says what a test makes it say. Each connection is served by the test's function in a goroutine
// of its own. It is closed when the test ends, and waits then for those functions.
type Fake struct {
	listener net.Listener
	serve    func(*FakeConn)
	tls      *tls.Config   // nil: Startup refuses encryption
	done     chan struct{} // closed by Close
	ended    sync.WaitGroup

	mu       sync.Mutex
	accepted int
	open     map[net.Conn]struct{}
	changed  chan struct{} // closed and replaced whenever accepted or open changes
}

// FakeTLS is what Fakes that are made from now on encrypt with, if they are asked to; nil refuses that. A test binary that
// has its Fakes encrypt sets it in its TestMain.
var FakeTLS *tls.Config

// NewFake listens on a free loopback port. A connection is closed when serve returns. The FakeConn's methods end serve
// quietly, by a panic that the Fake catches, once the peer has gone.
func NewFake(tb testing.TB, serve func(*FakeConn)) *Fake {
	tb.Helper()
	return NewFakeAt(tb, "127.0.0.1:0", serve)
}

// NewFakeAt is NewFake on an address of the test's choice. All of 127.0.0.0/8 is this machine.
func NewFakeAt(tb testing.TB, addr string, serve func(*FakeConn)) *Fake {
	tb.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	f := &Fake{listener: l, serve: serve, tls: FakeTLS, done: make(chan struct{}), open: map[net.Conn]struct{}{}, changed: make(chan struct{})}
	f.ended.Go(f.accept)
	tb.Cleanup(f.Close)
	return f
}

// Addr is host:port, to dial.
func (f *Fake) Addr() string { return f.listener.Addr().String() }

// Port is Addr's.
func (f *Fake) Port() int { return f.listener.Addr().(*net.TCPAddr).Port }

// Accepted counts all connections so far.
func (f *Fake) Accepted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accepted
}

// Open counts the connections whose serve has not returned.
func (f *Fake) Open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

// AwaitAccepted waits until at least n connections were accepted; the test fails if that takes too long.
func (f *Fake) AwaitAccepted(tb testing.TB, n int) {
	tb.Helper()
	f.await(tb, fmt.Sprintf("%d accepted connections", n), func() bool { return f.accepted >= n })
}

// AwaitOpen waits until exactly n connections are being served.
func (f *Fake) AwaitOpen(tb testing.TB, n int) {
	tb.Helper()
	f.await(tb, fmt.Sprintf("%d open connections", n), func() bool { return len(f.open) == n })
}

func (f *Fake) await(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		ok, accepted, open, changed := holds(), f.accepted, len(f.open), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			tb.Fatalf("fake server: waited for %s, but %d were accepted and %d are open", what, accepted, open)
		}
	}
}

// Close stops listening, closes every connection and returns when every serve has.
func (f *Fake) Close() {
	f.mu.Lock()
	select {
	case <-f.done:
	default:
		close(f.done)
	}
	f.listener.Close()
	for c := range f.open {
		c.Close()
	}
	f.mu.Unlock()
	f.ended.Wait()
}

func (f *Fake) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.accepted++
		n := f.accepted
		f.open[conn] = struct{}{}
		f.announce()
		select {
		case <-f.done: // Close did not see this one
			conn.Close()
		default:
		}
		f.mu.Unlock()
		f.ended.Go(func() { f.serveOne(conn, n) })
	}
}

// announce wakes whoever awaits. The caller holds mu.
func (f *Fake) announce() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Fake) serveOne(conn net.Conn, n int) {
	c := &FakeConn{Number: n, conn: conn, fake: f, left: -1}
	c.Backend = pgproto3.NewBackend(conn, conn)
	defer func() {
		conn.Close()
		f.mu.Lock()
		delete(f.open, conn)
		f.announce()
		f.mu.Unlock()
		r := recover()
		if _, quietly := r.(gone); r != nil && !quietly {
			panic(r)
		}
	}()
	f.serve(c)
}

// gone unwinds serve when its connection has ended.
type gone struct{}

// FakeConn is one connection to a Fake. Unless said otherwise a method writes at once what it is named after.
type FakeConn struct {
	Number  int               // 1 for the first connection
	Backend *pgproto3.Backend // reads what the client says; write through the methods below, which know about limits

	conn  net.Conn
	fake  *Fake
	left  int           // bytes that may still be written before the connection closes, -1: any number
	pause time.Duration // between single bytes, 0: written at once
}

// CloseAfter closes the connection when n more bytes have been written, wherever in a message that is.
func (c *FakeConn) CloseAfter(n int) { c.left = n }

// Drip writes everything from now on byte by byte with a pause in between.
func (c *FakeConn) Drip(pause time.Duration) { c.pause = pause }

// Raw writes bytes as they are.
func (c *FakeConn) Raw(b []byte) {
	cut := c.left >= 0 && len(b) >= c.left
	if cut {
		b = b[:c.left]
	}
	if c.pause == 0 {
		c.write(b)
	} else {
		for i := range b {
			c.write(b[i : i+1])
			select {
			case <-time.After(c.pause):
			case <-c.fake.done:
				panic(gone{})
			}
		}
	}
	if c.left >= 0 {
		c.left -= len(b)
	}
	if cut {
		c.Close()
	}
}

func (c *FakeConn) write(b []byte) {
	if _, err := c.conn.Write(b); err != nil {
		panic(gone{})
	}
}

// Close closes the connection and ends serve.
func (c *FakeConn) Close() {
	c.conn.Close()
	panic(gone{})
}

// Reset closes the connection with a TCP reset and ends serve.
func (c *FakeConn) Reset() {
	under := c.conn
	if inner, ok := under.(*tls.Conn); ok {
		under = inner.NetConn()
	}
	under.(*net.TCPConn).SetLinger(0)
	under.Close()
	c.Close()
}

// Send writes messages in one piece.
func (c *FakeConn) Send(messages ...pgproto3.BackendMessage) {
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			panic(err)
		}
	}
	c.Raw(b)
}

// Frame writes a message of any type with any length field, which need not be that of the body.
func (c *FakeConn) Frame(kind byte, length int32, body []byte) {
	c.Raw(append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(length)), body...))
}

// Receive reads one message. It is valid until the next one is read.
func (c *FakeConn) Receive() pgproto3.FrontendMessage {
	m, err := c.Backend.Receive()
	if err != nil {
		panic(gone{})
	}
	return m
}

// Query reads messages until a Query and returns its text.
func (c *FakeConn) Query() string {
	for {
		switch m := c.Receive().(type) {
		case *pgproto3.Query:
			return m.String
		case *pgproto3.Terminate:
			panic(gone{})
		}
	}
}

// AwaitEnd reads and forgets what the client says until it hangs up or the Fake is closed: a server that never answers.
func (c *FakeConn) AwaitEnd() {
	_, err := io.Copy(io.Discard, c.conn)
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		panic(gone{})
	}
}

// Startup reads the startup message, after refusing encryption as often as the client asks. A cancel request ends serve,
// unless the test reads with Backend.ReceiveStartupMessage itself.
func (c *FakeConn) Startup() map[string]string {
	for {
		m, err := c.Backend.ReceiveStartupMessage()
		if err != nil {
			panic(gone{})
		}
		switch m := m.(type) {
		case *pgproto3.StartupMessage:
			return m.Parameters
		case *pgproto3.SSLRequest:
			if c.fake.tls != nil {
				c.encrypt(c.fake.tls)
				continue
			}
			c.Raw([]byte{'N'})
		case *pgproto3.GSSEncRequest:
			c.Raw([]byte{'N'})
		default:
			panic(gone{})
		}
	}
}

// Encrypt answers a request for TLS with yes; what follows is inside it. It ends serve when the handshake fails.
func (c *FakeConn) Encrypt(config *tls.Config) {
	m, err := c.Backend.ReceiveStartupMessage()
	if _, ok := m.(*pgproto3.SSLRequest); err != nil || !ok {
		panic(gone{})
	}
	c.encrypt(config)
}

// CloseNotify ends the sending direction of TLS, and not that of TCP.
func (c *FakeConn) CloseNotify() {
	if err := c.conn.(*tls.Conn).CloseWrite(); err != nil {
		panic(gone{})
	}
}

func (c *FakeConn) encrypt(config *tls.Config) {
	c.Raw([]byte{'S'})
	conn := tls.Server(c.conn, config)
	if err := conn.Handshake(); err != nil {
		panic(gone{})
	}
	c.conn = conn
	c.Backend = pgproto3.NewBackend(conn, conn)
}

// AuthOK is the end of a successful authentication.
func (c *FakeConn) AuthOK() { c.Send(&pgproto3.AuthenticationOk{}) }

// ParameterStatus reports a setting.
func (c *FakeConn) ParameterStatus(name, value string) {
	c.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
}

// KeyData is what the client needs to cancel.
func (c *FakeConn) KeyData(pid uint32, secret []byte) {
	c.Send(&pgproto3.BackendKeyData{ProcessID: pid, SecretKey: secret})
}

// Ready says ReadyForQuery with status I, T or E.
func (c *FakeConn) Ready(status byte) { c.Send(&pgproto3.ReadyForQuery{TxStatus: status}) }

// Login is the whole of a login without password: Startup, AuthOK, the parameters PostgreSQL reports, KeyData with the
// connection's number, Ready. It returns the startup parameters.
func (c *FakeConn) Login() map[string]string {
	p := c.Startup()
	c.Welcome()
	return p
}

// Welcome is Login without Startup.
func (c *FakeConn) Welcome() {
	c.AuthOK()
	for _, s := range [][2]string{
		{"server_version", "15.0"}, {"server_encoding", "UTF8"}, {"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"},
		{"TimeZone", "UTC"}, {"IntervalStyle", "postgres"}, {"integer_datetimes", "on"}, {"standard_conforming_strings", "on"},
		{"is_superuser", "off"}, {"session_authorization", "fake"}, {"application_name", ""},
	} {
		c.ParameterStatus(s[0], s[1])
	}
	c.KeyData(uint32(c.Number), []byte{1, 2, 3, 4})
	c.Ready('I')
}

// Columns says RowDescription with text columns.
func (c *FakeConn) Columns(names ...string) {
	var m pgproto3.RowDescription
	for _, name := range names {
		m.Fields = append(m.Fields, pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
	}
	c.Send(&m)
}

// Row says DataRow with text values.
func (c *FakeConn) Row(values ...string) {
	var m pgproto3.DataRow
	for _, v := range values {
		m.Values = append(m.Values, []byte(v))
	}
	c.Send(&m)
}

// Complete says CommandComplete.
func (c *FakeConn) Complete(tag string) { c.Send(&pgproto3.CommandComplete{CommandTag: []byte(tag)}) }

// Error says ErrorResponse.
func (c *FakeConn) Error(severity, sqlstate, message string) {
	c.Send(&pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: sqlstate, Message: message})
}

// Answer says everything a Query for one text value gets, up to ReadyForQuery.
func (c *FakeConn) Answer(value string) {
	c.Columns("answer")
	c.Row(value)
	c.Complete("SELECT 1")
	c.Ready('I')
}

// AskPassword asks for the password in clear and returns it.
func (c *FakeConn) AskPassword() string {
	c.Send(&pgproto3.AuthenticationCleartextPassword{})
	return c.password(pgproto3.AuthTypeCleartextPassword)
}

// AskMD5 asks for an md5 response and returns it.
func (c *FakeConn) AskMD5(salt [4]byte) string {
	c.Send(&pgproto3.AuthenticationMD5Password{Salt: salt})
	return c.password(pgproto3.AuthTypeMD5Password)
}

func (c *FakeConn) password(authType uint32) string {
	if err := c.Backend.SetAuthType(authType); err != nil {
		panic(err)
	}
	m, ok := c.Receive().(*pgproto3.PasswordMessage)
	if !ok {
		panic(gone{})
	}
	return m.Password
}

// AskSASL offers mechanisms and returns the client's choice and its first message.
func (c *FakeConn) AskSASL(mechanisms ...string) (mechanism string, first []byte) {
	c.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: mechanisms})
	if err := c.Backend.SetAuthType(pgproto3.AuthTypeSASL); err != nil {
		panic(err)
	}
	m, ok := c.Receive().(*pgproto3.SASLInitialResponse)
	if !ok {
		panic(gone{})
	}
	return m.AuthMechanism, append([]byte(nil), m.Data...)
}

// ContinueSASL sends the server's challenge and returns the client's response.
func (c *FakeConn) ContinueSASL(challenge []byte) []byte {
	c.Send(&pgproto3.AuthenticationSASLContinue{Data: challenge})
	if err := c.Backend.SetAuthType(pgproto3.AuthTypeSASLContinue); err != nil {
		panic(err)
	}
	m, ok := c.Receive().(*pgproto3.SASLResponse)
	if !ok {
		panic(gone{})
	}
	return append([]byte(nil), m.Data...)
}

// FinishSASL sends the server's last word.
func (c *FakeConn) FinishSASL(signature []byte) {
	c.Send(&pgproto3.AuthenticationSASLFinal{Data: signature})
}
