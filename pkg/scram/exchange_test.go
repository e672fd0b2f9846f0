package scram

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

var testSalt = []byte("0123456789abcdef")

// exchange lets a client and a server talk and returns the first error of either.
func exchange(c *Client, s *Server) error {
	first, err := s.First(c.First())
	if err != nil {
		return err
	}
	final, err := c.Challenge(first)
	if err != nil {
		return err
	}
	signature, err := s.Final(final)
	if err != nil {
		return err
	}
	return c.Verify(signature)
}

func TestAClientAndAServerAgreeOnARightPassword(t *testing.T) {
	c, s := NewClient("pencil", []byte("client")), NewServer(NewVerifier("pencil", testSalt, 2), []byte("server"))
	if err := exchange(c, s); err != nil {
		t.Fatal(err)
	}
	if s.ClientKey() != c.Keys().ClientKey {
		t.Error("the server learned another client key than the client has")
	}
}

func TestAWrongPasswordIsErrProof(t *testing.T) {
	c, s := NewClient("pencils", []byte("client")), NewServer(NewVerifier("pencil", testSalt, 2), []byte("server"))
	if err := exchange(c, s); !errors.Is(err, ErrProof) {
		t.Fatalf("got %v", err)
	}
}

func TestKeysLearnedByProvingAClientLogIntoTheServer(t *testing.T) {
	v := NewVerifier("pencil", testSalt, 2)
	proved := NewServer(v, []byte("pooler"))
	if err := exchange(NewClient("pencil", []byte("client")), proved); err != nil {
		t.Fatal(err)
	}
	keys := Keys{ClientKey: proved.ClientKey(), ServerKey: v.ServerKey, Salt: v.Salt, Iterations: v.Iterations}
	again := NewClientFromKeys(keys, []byte("pooler"))
	if err := exchange(again, NewServer(v, []byte("server"))); err != nil {
		t.Fatal(err)
	}
	if got := again.Keys(); got.ClientKey != keys.ClientKey || got.ServerKey != keys.ServerKey {
		t.Error("the keys changed on the way")
	}
}

func TestKeysAreRefusedByErrKeysWhenSaltOrIterationsChanged(t *testing.T) {
	v := NewVerifier("pencil", testSalt, 2)
	keys := Keys{Salt: testSalt, Iterations: 2, ServerKey: v.ServerKey}
	for name, other := range map[string]Verifier{
		"salt":       NewVerifier("pencil", []byte("another"), 2),
		"iterations": NewVerifier("pencil", testSalt, 3),
	} {
		if err := exchange(NewClientFromKeys(keys, []byte("client")), NewServer(other, []byte("server"))); !errors.Is(err, ErrKeys) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAServerThatDoesNotKnowThePasswordIsErrServerProof(t *testing.T) {
	impostor := NewVerifier("pencil", testSalt, 2)
	impostor.ServerKey[0] ^= 1
	if err := exchange(NewClient("pencil", []byte("client")), NewServer(impostor, []byte("server"))); !errors.Is(err, ErrServerProof) {
		t.Fatalf("got %v", err)
	}
}

func TestAMockVerifierIsStablePerUserAndDiffersBetweenThem(t *testing.T) {
	a, b := MockVerifier([]byte("s"), "alice", 4096), MockVerifier([]byte("s"), "alice", 4096)
	other, elsewhere := MockVerifier([]byte("s"), "bob", 4096), MockVerifier([]byte("t"), "alice", 4096)
	if a.String() != b.String() {
		t.Error("the same user gets another verifier")
	}
	if string(a.Salt) == string(other.Salt) || string(a.Salt) == string(elsewhere.Salt) {
		t.Error("another user or secret gets the same salt")
	}
	if _, err := ParseVerifier(a.String()); err != nil || len(a.Salt) != 16 {
		t.Errorf("it does not look like PostgreSQL's: %v", err)
	}
	for _, password := range []string{"", "alice", "s"} {
		if err := exchange(NewClient(password, []byte("c")), NewServer(MockVerifier([]byte("s"), "alice", 2), []byte("s"))); !errors.Is(err, ErrProof) {
			t.Errorf("password %q: %v", password, err)
		}
	}
}

func TestEveryStepHappensOnceAndAFailedExchangeStaysFailed(t *testing.T) {
	fresh := func() (*Client, *Server) {
		return NewClient("pencil", []byte("c")), NewServer(NewVerifier("pencil", testSalt, 2), []byte("s"))
	}
	c, s := fresh()
	if _, err := s.Final([]byte("c=biws,r=x,p=x")); err == nil {
		t.Error("Final came first")
	}
	if _, err := s.First(c.First()); err == nil {
		t.Error("First worked after a failure")
	}
	if err := c.Verify([]byte("v=x")); err == nil {
		t.Error("Verify came before Challenge")
	}
	c, s = fresh()
	if err := exchange(c, s); err != nil {
		t.Fatal(err)
	}
	if _, err := s.First([]byte("n,,n=,r=c")); err == nil {
		t.Error("First worked after the end")
	}
	if _, err := c.Challenge([]byte("r=Yw==,s=Yw==,i=1")); err == nil {
		t.Error("Challenge worked after the end")
	}
	mustPanic(t, "ClientKey after a late message", func() { s.ClientKey() })
	mustPanic(t, "Keys after a late message", func() { c.Keys() })
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestMisuseByTheCallerPanics(t *testing.T) {
	mustPanic(t, "an empty nonce", func() { NewClient("x", nil) })
	mustPanic(t, "an overlong nonce", func() { NewServer(Verifier{}, make([]byte, 193)) })
	mustPanic(t, "no salt", func() { NewVerifier("x", nil, 1) })
	mustPanic(t, "no iterations", func() { NewVerifier("x", testSalt, 0) })
}

// pgx has its own SCRAM client, so it is an independent witness for our server.
func TestPgxProvesItselfToTheServer(t *testing.T) {
	cases := []struct {
		stored, password string
		want             error
	}{
		{"pencil", "pencil", nil},
		{"gr\u00fc\u00df", "gr\u00fc\u00df", nil},
		{"e\u0301", "\u00e9", nil}, // both prepared to the same
		{"pencil", "wrong", ErrProof},
	}
	for _, c := range cases {
		served := make(chan error, 1)
		config, err := pgconn.ParseConfig("host=pipe user=app dbname=app sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		config.Password = c.password
		config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"pipe"}, nil }
		config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { served <- serveLogin(ours, NewServer(NewVerifier(c.stored, testSalt, 4096), []byte("server"))) }()
			return theirs, nil
		}
		conn, err := pgconn.ConnectConfig(context.Background(), config)
		if got := <-served; !errors.Is(got, c.want) {
			t.Errorf("stored %+q, password %+q: the server says %v, want %v", c.stored, c.password, got, c.want)
		}
		if (err == nil) != (c.want == nil) {
			t.Errorf("stored %+q, password %+q: pgx says %v", c.stored, c.password, err)
		}
		if conn != nil {
			conn.Conn().Close()
		}
	}
}

// serveLogin is the smallest server pgx logs into.
func serveLogin(conn net.Conn, s *Server) error {
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{Mechanism}})
	b.Flush()
	b.SetAuthType(pgproto3.AuthTypeSASL)
	m, err := b.Receive()
	if err != nil {
		return err
	}
	first, err := s.First(m.(*pgproto3.SASLInitialResponse).Data)
	if err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationSASLContinue{Data: first})
	b.Flush()
	b.SetAuthType(pgproto3.AuthTypeSASLContinue)
	if m, err = b.Receive(); err != nil {
		return err
	}
	final, err := s.Final(m.(*pgproto3.SASLResponse).Data)
	if err != nil {
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: err.Error()})
		b.Flush()
		return err
	}
	b.Send(&pgproto3.AuthenticationSASLFinal{Data: final})
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	return b.Flush()
}

func TestAnExchangeAllocatesLittle(t *testing.T) {
	v := NewVerifier("pencil", testSalt, 2)
	keys := Keys{ServerKey: v.ServerKey, Salt: v.Salt, Iterations: v.Iterations}
	keys.ClientKey = derive("pencil", testSalt, 2).ClientKey
	allocs := testing.AllocsPerRun(100, func() {
		if err := exchange(NewClientFromKeys(keys, testSalt), NewServer(v, testSalt)); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 75 {
		t.Errorf("both sides of an exchange allocate %v times, at most 75 are expected", allocs)
	}
}

func BenchmarkProvingAClient(b *testing.B) {
	v := NewVerifier("pencil", testSalt, 4096)
	c := NewClient("pencil", []byte("client"))
	s := NewServer(v, []byte("server"))
	clientFirst := c.First()
	first, _ := s.First(clientFirst)
	final, _ := c.Challenge(first)
	b.ReportAllocs()
	for b.Loop() {
		s := NewServer(v, []byte("server"))
		if _, err := s.First(clientFirst); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Final(final); err != nil {
			b.Fatal(err)
		}
	}
}

func TestErrorsNeverQuoteSecrets(t *testing.T) {
	for _, secret := range []string{
		"SCRAM-SHA-256$hunter2", "SCRAM-SHA-256$4096:hunter2$hunter2:hunter2", "hunter2",
		"SCRAM-SHA-256$hunter2:hunter2$hunter2:hunter2",
	} {
		if _, err := ParseVerifier(secret); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("ParseVerifier says %v", err)
		}
	}
	s := rfcServer()
	if _, err := s.First([]byte(rfcClientFirst)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Final([]byte("c=biws,r=hunter2,p=hunter2")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Final says %v", err)
	}
}
