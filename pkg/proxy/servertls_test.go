package proxy

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/eventloop"
	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// tlsPostgres starts a PostgreSQL that can do TLS.
func tlsPostgres(t *testing.T, cert issued, auth pgtest.Auth, hba ...string) *pgtest.Server {
	t.Helper()
	return pgtest.Start(t, pgtest.Options{
		Auth: auth, HBA: hba,
		Files:    map[string]string{"server.crt": cert.certPEM, "server.key": cert.keyPEM},
		Settings: map[string]string{"ssl": "on"},
	})
}

// dialAt dials a server at this port.
func dialAt(t *testing.T, port int, edit func(*dialSpec)) (*dialed, error) {
	t.Helper()
	spec := dialSpec{
		host: "127.0.0.1", port: port, database: pgtest.Database, user: pgtest.User, secret: secret{password: pgtest.Password}, timeout: patience,
	}
	edit(&spec)
	spec.to = candidate{host: spec.host, port: spec.port}
	d, err := dial(context.Background(), spec)
	if err == nil {
		t.Cleanup(d.close)
	}
	return d, err
}

const overTLS = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"

func TestServersAreAskedForTLSAsTheModeSays(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	cert := ca.issue("localhost", nil)
	base := &tls.Config{RootCAs: ca.pool()}
	const declined = "server does not offer TLS, which server_tls_sslmode = "
	for _, server := range []struct {
		name  string
		start func() *pgtest.Server
		want  map[TLSMode]string // t, f, or the error
	}{
		{"takes both", func() *pgtest.Server { return tlsPostgres(t, cert, pgtest.SCRAM) }, map[TLSMode]string{
			TLSDisable: "f", TLSAllow: "f", TLSPrefer: "t", TLSRequire: "t", TLSVerifyCA: "t", TLSVerifyFull: "t",
		}},
		{"takes TLS alone", func() *pgtest.Server { return tlsPostgres(t, cert, "", "hostssl all all 127.0.0.1/32 scram-sha-256") }, map[TLSMode]string{
			TLSDisable: "no pg_hba.conf entry", TLSAllow: "t", TLSPrefer: "t", TLSRequire: "t", TLSVerifyCA: "t", TLSVerifyFull: "t",
		}},
		{"has no TLS", func() *pgtest.Server { return pgtest.Start(t, pgtest.Options{}) }, map[TLSMode]string{
			TLSDisable: "f", TLSAllow: "f", TLSPrefer: "f", TLSRequire: declined + "require demands",
			TLSVerifyCA: declined + "verify-ca demands", TLSVerifyFull: declined + "verify-full demands",
		}},
	} {
		t.Run(server.name, func(t *testing.T) {
			s := server.start()
			for mode, want := range server.want {
				set := testSettings("localhost", s.Port, nil)
				set.ServerTLS = NewServerTLS(mode, base)
				if len(want) > 1 {
					_, err := dialAt(t, s.Port, func(spec *dialSpec) { spec.host, spec.tls = "localhost", set.ServerTLS })
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%v: %v, want %q", mode, err, want)
					}
					continue
				}
				p := startProxy(t, set)
				c := p.call()
				if got := c.must(overTLS); got != want {
					t.Errorf("%v: over TLS is %q, want %q", mode, got, want)
				}
				// And back in the loop all is as ever.
				if got := c.must("select length(repeat('x', 200000))"); got != "200000" {
					t.Errorf("%v: %q", mode, got)
				}
			}
		})
	}
}

// secureFake is a server that insists on TLS.
func secureFake(t *testing.T, config *tls.Config) *pgtest.Fake {
	t.Helper()
	return pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Encrypt(config)
		echo(c)
	})
}

func TestServersAreVerifiedAsTheModeSays(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca, stranger := newAuthority(t), newAuthority(t)
	bare := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames, c.IPAddresses, c.Subject.CommonName = nil, nil, name }
	}
	middle := ca.issue("middle", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	middleCert, err := x509.ParseCertificate(middle.Certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	chained := (&authority{t, middleCert, middle.PrivateKey.(crypto.Signer)}).issue("localhost", nil).Certificate
	chained.Certificate = append(chained.Certificate, middle.Certificate.Certificate[0])
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	for name, c := range map[string]struct {
		cert     tls.Certificate
		host     string
		ca, full string // "" is accepted
	}{
		"of this name":            {cert: ca.issue("localhost", nil).Certificate},
		"by way of another":       {cert: chained},
		"of another name":         {cert: ca.issue("db.example", nil).Certificate, full: "certificate is valid for db.example, not localhost"},
		"of this address":         {cert: ca.issue("127.0.0.1", nil).Certificate, host: "127.0.0.1"},
		"of another address":      {cert: ca.issue("127.0.0.2", nil).Certificate, host: "127.0.0.1", full: "certificate is valid for 127.0.0.2, not 127.0.0.1"},
		"of a name, by address":   {cert: ca.issue("localhost", nil).Certificate, host: "127.0.0.1", full: "cannot validate certificate for 127.0.0.1"},
		"of this common name":     {cert: ca.issue("x", bare("localhost")).Certificate},
		"of another common name":  {cert: ca.issue("x", bare("localhost.example")).Certificate, full: `the server's certificate is for "localhost.example", not for "localhost"`},
		"of an address as a name": {cert: ca.issue("x", bare("127.0.0.1")).Certificate, host: "127.0.0.1"},
		"without a name":          {cert: ca.issue("x", bare("")).Certificate, full: `the server's certificate is for "", not for "localhost"`},
		"expired":                 {cert: ca.issue("localhost", expired).Certificate, ca: "certificate has expired", full: "certificate has expired"},
		"by somebody else":        {cert: stranger.issue("localhost", nil).Certificate, ca: "certificate signed by unknown authority", full: "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			f := secureFake(t, &tls.Config{Certificates: []tls.Certificate{c.cert}})
			for mode, want := range map[TLSMode]string{TLSPrefer: "", TLSRequire: "", TLSVerifyCA: c.ca, TLSVerifyFull: c.full} {
				_, err := dialAt(t, f.Port(), func(spec *dialSpec) {
					spec.host = "localhost"
					if c.host != "" {
						spec.host = c.host
					}
					spec.tls = NewServerTLS(mode, &tls.Config{RootCAs: ca.pool()})
				})
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%v: %v, want %q", mode, err, want)
				}
			}
		})
	}
}

func TestAServerSeesWhomItIsTold(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	ours := ca.issue("pooler", nil)
	seen := make(chan tls.ConnectionState, 4)
	f := secureFake(t, &tls.Config{
		Certificates: []tls.Certificate{ca.issue("localhost", nil).Certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(),
		NextProtos: []string{alpn}, VerifyConnection: func(state tls.ConnectionState) error {
			seen <- state
			return nil
		},
	})
	for host, name := range map[string]string{"localhost": "localhost", "127.0.0.1": ""} {
		_, err := dialAt(t, f.Port(), func(spec *dialSpec) {
			spec.host = host
			spec.tls = NewServerTLS(TLSRequire, &tls.Config{Certificates: []tls.Certificate{ours.Certificate}})
		})
		if err != nil {
			t.Fatal(err)
		}
		state := <-seen
		if state.ServerName != name || state.NegotiatedProtocol != alpn || state.PeerCertificates[0].Subject.CommonName != "pooler" {
			t.Errorf("asked for %q by %q, showing %v", state.ServerName, state.NegotiatedProtocol, state.PeerCertificates[0].Subject)
		}
	}
	_, err := dialAt(t, f.Port(), func(spec *dialSpec) { spec.tls = NewServerTLS(TLSRequire, &tls.Config{}) })
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
}

// What a server, or somebody in between, may answer to the request for TLS.
func TestAnswersToTheRequestForTLS(t *testing.T) {
	pgtest.CheckLeaks(t)
	for answer, want := range map[string]string{
		"":                        "server closed the connection when asked for TLS: EOF",
		"E\x00\x00\x00\x10SFATAL": "server answered the request for TLS with an error",
		"R":                       "server answered the request for TLS with byte 0x52, allowed are S and N",
		// CVE-2021-23222.
		"SR\x00\x00\x00\x08\x00\x00\x00\x00": "server sent unencrypted data behind its answer to the request for TLS",
		"NR\x00\x00\x00\x08\x00\x00\x00\x00": "server sent unencrypted data behind its answer to the request for TLS",
		"S":                                  "TLS handshake with the server failed: EOF",
	} {
		f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
			if _, err := c.Backend.ReceiveStartupMessage(); err == nil {
				c.Raw([]byte(answer))
			}
		})
		_, err := dialAt(t, f.Port(), func(spec *dialSpec) { spec.tls = NewServerTLS(TLSPrefer, &tls.Config{}) })
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %q", answer, err, want)
		}
	}
}

// between stands between the pooler and a server, with a certificate of its own, and reads and changes what passes.
func between(t *testing.T, cert tls.Certificate, server *pgtest.Server, edit func([]byte) []byte) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				defer conn.Close()
				request := make([]byte, 8)
				if _, err := io.ReadFull(conn, request); err != nil {
					return
				}
				_, _ = conn.Write([]byte{'S'})
				here := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
				under, err := net.Dial("tcp", server.Addr())
				if err != nil {
					return
				}
				defer under.Close()
				_, _ = under.Write(request)
				_, _ = io.ReadFull(under, request[:1])
				there := tls.Client(under, unverified())
				var back sync.WaitGroup
				defer back.Wait()
				back.Go(func() {
					defer conn.Close()
					buf := make([]byte, 64<<10)
					for {
						n, err := there.Read(buf)
						if err != nil {
							return
						}
						if _, err := here.Write(edit(buf[:n])); err != nil {
							return
						}
					}
				})
				_, _ = io.Copy(there, here)
				_ = under.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); ended.Wait() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestALoginToAServerIsBoundToItsTLS(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	for name, cert := range map[string]issued{
		"ECDSA with SHA-256": ca.issue("localhost", nil),
		"ECDSA with SHA-384": ca.by(curveKey(t, elliptic.P384())).issue("localhost", nil),
		"RSA with SHA-512":   ca.by(rsaKey(t)).issue("localhost", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA512WithRSA }),
		"RSA-PSS":            ca.by(rsaKey(t)).issueFor(rsaKey(t), "localhost", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }),
		"Ed25519":            ca.by(edwardsKey(t)).issueFor(curveKey(t, elliptic.P256()), "localhost", nil), // no binding is defined
	} {
		t.Run(name, func(t *testing.T) {
			s := tlsPostgres(t, cert, pgtest.SCRAM)
			require := NewServerTLS(TLSRequire, &tls.Config{})
			d, err := dialAt(t, s.Port, func(spec *dialSpec) { spec.tls = require })
			if err != nil {
				t.Fatal(err)
			}
			// Again with keys alone, as passthrough keeps them.
			keys := d.secret
			if keys == nil || keys.keys == nil {
				t.Fatalf("learned %+v", keys)
			}
			if _, err = dialAt(t, s.Port, func(spec *dialSpec) { spec.tls, spec.secret = require, *keys }); err != nil {
				t.Errorf("with keys: %v", err)
			}
			if name == "Ed25519" {
				return
			}
			// Somebody in between who has another certificate.
			as := func(edit func([]byte) []byte) error {
				port := between(t, ca.issue("localhost", nil).Certificate, s, edit)
				_, err := dialAt(t, port, func(spec *dialSpec) { spec.tls = require })
				return err
			}
			if err := as(func(b []byte) []byte { return b }); err == nil || !strings.Contains(err.Error(), "SCRAM channel binding check failed") {
				t.Errorf("from in between: %v", err)
			}
			// And who hides that the server offers to bind.
			if err := as(func(b []byte) []byte {
				const offer = "SCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00"
				if at := strings.Index(string(b), offer); at > 0 {
					b = append(b[:at:at], b[at+len("SCRAM-SHA-256-PLUS\x00"):]...)
					b[4] -= byte(len("SCRAM-SHA-256-PLUS\x00"))
				}
				return b
			}); err == nil || !strings.Contains(err.Error(), "SCRAM channel binding negotiation error") {
				t.Errorf("from in between, without the offer: %v", err)
			}
		})
	}
}

func TestCancelRequestsGoInsideTLSWhereTheConnectionDoes(t *testing.T) {
	pgtest.CheckLeaks(t)
	cert := newAuthority(t).issue("localhost", nil)
	s := tlsPostgres(t, cert, pgtest.SCRAM)
	set := testSettings("localhost", s.Port, nil)
	set.ServerTLS = NewServerTLS(TLSRequire, &tls.Config{})
	set.ClientTLS = NewClientTLS(TLSPrefer, &tls.Config{})
	p := startProxy(t, set)
	c := p.call()
	c.send(&pgproto3.Query{String: "select pg_sleep(60)"})
	p.await("it runs", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Active == 1 })
	awaitSleep(t, s)
	// The client's own request comes in TLS, too.
	r := p.raw(t)
	if !*encryptedRun {
		r.inTLS(unverified())
	}
	b, err := (&pgproto3.CancelRequest{ProcessID: c.pid, SecretKey: c.key}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	r.send(b).dropped()
	if got := c.reply(); got.err == nil || got.err.Code != "57014" || got.status != 'I' {
		t.Errorf("answered %+v", got)
	}

	t.Run("as seen by the server", func(t *testing.T) {
		canceled := make(chan struct{}, 1)
		config := &tls.Config{Certificates: []tls.Certificate{cert.Certificate}}
		f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
			c.Encrypt(config)
			if c.Number == 2 {
				if m, err := c.Backend.ReceiveStartupMessage(); err == nil {
					if _, ok := m.(*pgproto3.CancelRequest); ok {
						close(canceled)
					}
				}
				return
			}
			c.Login()
			c.Query()
			<-canceled
			c.Error("ERROR", "57014", "canceled")
			c.Ready('I')
			c.AwaitEnd()
		})
		set := fakeSettings(f, nil)
		set.ServerTLS = NewServerTLS(TLSPrefer, &tls.Config{})
		p := startProxy(t, set)
		c := p.call()
		c.send(&pgproto3.Query{String: "endless"})
		p.await("it runs", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Active == 1 })
		if err := c.cancel(); err != nil {
			t.Fatal(err)
		}
		if got := c.reply(); got.err == nil || got.err.Code != "57014" {
			t.Errorf("answered %+v", got)
		}
	})
}

func awaitSleep(t *testing.T, s *pgtest.Server) {
	t.Helper()
	deadline := time.After(patience)
	for {
		rows, err := s.Query(t.Context(), "select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
		if err == nil && len(rows) == 1 && rows[0][0] == "1" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("nobody sleeps: %v, %v", rows, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// A server whose TCP connection ends after any number of bytes, each sent by itself: the client gets the whole answer or
// an error, and the next connection works.
func TestAServersRecordMayBeCutAnywhere(t *testing.T) {
	pgtest.CheckLeaks(t)
	cert := newAuthority(t).issue("localhost", nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var limit, whole atomic.Int64
	limit.Store(1 << 20)
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				c := &cutter{Conn: conn, left: int(limit.Swap(1 << 20))}
				defer func() { _ = conn.Close() }()
				request := make([]byte, 8)
				if _, err := io.ReadFull(conn, request); err != nil {
					return
				}
				if _, err := c.Write([]byte{'S'}); err != nil {
					return
				}
				inside := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert.Certificate}, SessionTicketsDisabled: true, CurvePreferences: []tls.CurveID{tls.X25519}})
				be := pgproto3.NewBackend(inside, inside)
				if _, err := be.ReceiveStartupMessage(); err != nil {
					return
				}
				be.Send(&pgproto3.AuthenticationOk{})
				be.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
				be.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				if be.Flush() != nil {
					return
				}
				for {
					m, err := be.Receive()
					if err != nil {
						return
					}
					if _, query := m.(*pgproto3.Query); !query {
						return
					}
					be.Send(&pgproto3.DataRow{Values: [][]byte{[]byte("forty-two")}})
					be.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
					be.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
					if be.Flush() != nil {
						return
					}
					whole.Store(int64(c.written))
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); ended.Wait() })
	set := testSettings("127.0.0.1", l.Addr().(*net.TCPAddr).Port, func(r *Route) {
		r.Pool.Size, r.Pool.LoginRetry, r.Pool.ServerLifetime, r.Pool.Check = 1, time.Millisecond, time.Hour, false
	})
	set.ServerTLS = NewServerTLS(TLSRequire, &tls.Config{})
	p := startProxy(t, set)
	ask := func() error {
		c, err := tryCall(t, p.Addr)
		if err != nil {
			return err
		}
		defer func() { _ = c.conn.Close() }()
		r := c.ask("select")
		switch {
		case r.err == nil && r.status == 'I' && r.value(0) == "forty-two":
			return nil
		case r.err != nil:
			return errors.New(r.err.Message)
		}
		return errors.New("the connection has ended")
	}
	began := time.Now()
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	n, step := whole.Load(), int64(1)
	if time.Since(began) > 25*time.Millisecond {
		step = 7 // under the race detector, or on a machine that has other things to do
	}
	for cut := int64(0); cut < n; cut += step {
		// The one that is there goes, and the next is cut.
		p.closeServers()
		p.await("no server connection is left", func(s Snapshot) bool { return s.Servers == 0 })
		limit.Store(cut)
		err := ask()
		if err != nil && err.Error() != "server conn crashed?" && !strings.Contains(err.Error(), "the connection has ended") {
			t.Fatalf("cut after %d of %d bytes: %v", cut, n, err)
		}
		if err == nil {
			continue // it was shorter than the first: signatures vary in length
		}
		if err := ask(); err != nil {
			t.Fatalf("after one that was cut after %d of %d bytes: %v", cut, n, err)
		}
	}
}

// closeServers ends the server connections that nobody uses.
func (p *pooler) closeServers() {
	done := make(chan struct{})
	p.loop.Post(func() {
		for s := range p.servers {
			s.discard(pool.Evicted)
		}
		p.settle()
		close(done)
	})
	<-done
}

// PostgreSQL says close_notify before its process ends, and only that frees its slot.
func TestCloseNotifyIsNotTheEndOfAServer(t *testing.T) {
	pgtest.CheckLeaks(t)
	cert := newAuthority(t).issue("localhost", nil)
	said, release := make(chan struct{}), make(chan struct{})
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Encrypt(&tls.Config{Certificates: []tls.Certificate{cert.Certificate}})
		c.Login()
		c.Query()
		c.Answer("7")
		c.CloseNotify()
		close(said)
		<-release
	})
	set := fakeSettings(f, nil)
	set.ServerTLS = NewServerTLS(TLSRequire, &tls.Config{})
	p := startProxy(t, set)
	undisturbed(t, p.call())
	<-said
	p.closeServers()
	p.await("it closes", func(s Snapshot) bool { return s.Pools[0].Stats.Closing == 1 })
	if s := p.state(); s.Servers != 1 {
		t.Errorf("%d server connections after close_notify", s.Servers)
	}
	close(release)
	p.await("it is closed", func(s Snapshot) bool { return s.Servers == 0 && s.Pools[0].Stats.Closing == 0 })
}

// A peer can have TLS say things, by asking for other keys, and not read them.
func TestWhatTLSSaysByItselfDoesNotPileUp(t *testing.T) {
	var (
		sock eventloop.Conn
		bufs eventloop.Buffers
	)
	s := &secured{sock: &sock, bufs: &bufs}
	answer := make([]byte, 27)
	for said := 0; ; said += len(answer) {
		_, err := (*cipherSide)(s).Write(answer)
		if said+len(answer) > maxUnsent {
			if !errors.Is(err, errUnsent) {
				t.Errorf("after %d bytes: %v", said, err)
			}
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", said, err)
		}
	}
	s.drop()
	if n, bytes := bufs.Lent(); n != 0 || bytes != 0 {
		t.Errorf("%d buffers of %d bytes are lent", n, bytes)
	}
}
