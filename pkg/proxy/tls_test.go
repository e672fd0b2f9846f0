package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// unverified is a client that wants encryption and does not ask whom it speaks to.
func unverified() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}
}

// offeringTLS starts a proxy before an echo server that offers clients TLS in this mode, by a certificate of its own making.
func offeringTLS(t *testing.T, mode TLSMode, edit func(*Settings)) *pooler {
	t.Helper()
	p, _ := pooledFake(t, echo, func(set *Settings, _ *Route) {
		set.ClientTLS = NewClientTLS(mode, &tls.Config{})
		if edit != nil {
			edit(set)
		}
	})
	return p
}

// asked asks for TLS and reads the answer.
func (r *raw) asked() byte {
	r.t.Helper()
	return r.send(untyped(codeSSL, "")).reply()
}

// inTLS asks for TLS and shakes hands.
func (r *raw) inTLS(config *tls.Config) *raw {
	r.t.Helper()
	if got := r.asked(); got != 'S' {
		r.t.Fatalf("the request for TLS was answered by %q", got)
	}
	return r.shake(config)
}

func (r *raw) shake(config *tls.Config) *raw {
	r.t.Helper()
	conn := tls.Client(r.conn, config)
	if err := conn.Handshake(); err != nil {
		r.t.Fatalf("TLS handshake: %v", err)
	}
	r.conn = conn
	return r
}

// failing expects the handshake to fail with an error that contains this. In TLS 1.3 a client has its part done when the
// server refuses its certificate, and hears so at its first read.
func (r *raw) failing(config *tls.Config, want string) {
	r.t.Helper()
	conn := tls.Client(r.conn, config)
	err := conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		r.t.Errorf("the handshake ended with %v, want %q", err, want)
	}
}

func TestClientsMayOrMustUseTLSAsTheModeSays(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	app := ca.issue("app", nil)
	with := func(cert tls.Certificate) *tls.Config {
		c := unverified()
		c.Certificates = []tls.Certificate{cert}
		return c
	}
	for _, mode := range []TLSMode{TLSAllow, TLSPrefer, TLSRequire, TLSVerifyCA, TLSVerifyFull} {
		t.Run(mode.String(), func(t *testing.T) {
			p, _ := pooledFake(t, echo, func(set *Settings, _ *Route) {
				set.ClientTLS = NewClientTLS(mode, &tls.Config{ClientCAs: ca.pool()})
			})
			if mode < TLSRequire {
				p.raw(t).login()
				undisturbed(t, p.call())
			} else {
				p.raw(t).send(hello("user", "app", "database", "app")).
					refused("28000", "TLS required: connect with sslmode=require (client_tls_sslmode is "+mode.String()+")")
			}
			if mode < TLSVerifyCA {
				r := p.raw(t).inTLS(unverified()).login()
				r.send(packet('Q', "select 7\x00")).until('Z')
				return
			}
			r := p.raw(t).inTLS(with(app.Certificate)).login()
			r.send(packet('Q', "select 7\x00")).until('Z')
			for want, config := range map[string]*tls.Config{
				"certificate required":          unverified(),
				"unknown certificate authority": with(newAuthority(t).issue("app", nil).Certificate),
				"expired certificate":           with(ca.issue("app", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }).Certificate),
			} {
				r := p.raw(t)
				r.asked()
				r.failing(config, want)
			}
		})
	}
	t.Run("disable", func(t *testing.T) {
		p := offeringTLS(t, TLSDisable, nil)
		r := p.raw(t)
		if got := r.asked(); got != 'N' {
			t.Errorf("answered %q", got)
		}
		r.login()
		p.raw(t).send([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")).
			refused("08P01", "invalid length of startup packet: 369295618, allowed is 8 to 10000")
	})
}

// S59
func TestAClientMayBeginWithTLS(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSRequire, nil)
	for name, protocols := range map[string][]string{"PostgreSQL's": {alpn}, "several": {"h2", alpn}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			config := unverified()
			config.NextProtos = protocols
			r := p.raw(t).shake(config).login()
			r.send(packet('Q', "select 7\x00")).until('Z')
			got := r.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol
			if protocols != nil && got != alpn || protocols == nil && got != "" {
				t.Errorf("the protocol is %q", got)
			}
		})
	}
	// A browser that was sent here by somebody.
	config := unverified()
	config.NextProtos = []string{"h2", "http/1.1"}
	p.raw(t).failing(config, "no application protocol")
	r := p.raw(t)
	r.asked()
	r.failing(config, "no application protocol")
}

// S56
func TestEncryptionIsAskedForInOrder(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, nil)
	startup := hello("user", "app", "database", "app")
	// CVE-2021-23214: what is read before the handshake must not be taken for what was said inside.
	p.raw(t).send(append(untyped(codeSSL, ""), startup...)).refused("08P01", "received unencrypted data after SSL request")
	p.raw(t).send(append(untyped(codeSSL, ""), 0x16)).refused("08P01", "received unencrypted data after SSL request")
	// Later than that it is in the handshake's way.
	r := p.raw(t)
	r.asked()
	r.send(startup).dropped()
	r = p.raw(t)
	if got := r.send(untyped(codeGSS, "")).reply(); got != 'N' {
		t.Errorf("GSSAPI encryption was answered by %q", got)
	}
	r.inTLS(unverified()).login()
	p.raw(t).inTLS(unverified()).send(untyped(codeSSL, "")).refused("08P01", "received a request for encryption inside TLS")
	p.raw(t).inTLS(unverified()).send(untyped(codeGSS, "")).refused("08P01", "received a request for encryption inside TLS")
	// Not after another beginning.
	r = p.raw(t)
	r.send(untyped(codeGSS, "")).reply()
	r.send([]byte{0x16, 3, 1, 0, 1}, make([]byte, 3)).refused("08P01", "invalid length of startup packet: 369295616, allowed is 8 to 10000")
}

func TestAnOrderlyEndIsSaidInTLS(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, func(set *Settings) {
		route := set.Route
		set.Route = func(database, user string) (Route, bool) {
			r, ok := route(database, user)
			if database == "impatient" {
				r.Timeouts.Idle = 20 * time.Millisecond
			}
			return r, ok
		}
	})
	// An end without close_notify is io.ErrUnexpectedEOF, or a reset.
	ends := func(name string, r *raw) {
		t.Helper()
		if _, err := io.Copy(io.Discard, r.conn); err != nil {
			t.Errorf("%s: the end was %v", name, err)
		}
	}
	config := unverified()
	r := p.raw(t).inTLS(config).login()
	r.send(packet('X', ""))
	ends("after Terminate", r)
	ends("a refusal", p.raw(t).inTLS(config).send(hello("user", "app", "database", "nowhere")))
	ends("an idle client", p.raw(t).inTLS(config).send(hello("user", "app", "database", "impatient")))
	last := p.raw(t).inTLS(config).login()
	p.Stop()
	ends("the pooler's end", last)
}

// A client's own orderly end, without that of TCP.
func TestCloseNotifyIsTheEndOfAClient(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, nil)
	r := p.raw(t).inTLS(unverified()).login()
	r.send(packet('Q', "select 1\x00")).until('Z')
	if err := r.conn.(*tls.Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r.conn); err != nil {
		t.Errorf("the answer was %v", err)
	}
	p.quiet(t, 0)
}

// cutter lets through a number of bytes that are written and then hangs up.
type cutter struct {
	net.Conn
	left    int
	written int
}

var errCut = errors.New("cut")

func (c *cutter) Write(b []byte) (int, error) {
	for i := range b {
		if c.left == 0 {
			_ = c.Close()
			return i, errCut
		}
		if _, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
		c.left--
		c.written++
	}
	return len(b), nil
}

// A client that sends byte by byte, and hangs up after each number of bytes that a session takes.
func TestARecordMayBeCutAnywhere(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := offeringTLS(t, TLSPrefer, func(set *Settings) { set.LogDisconnections = true })
	bystander := p.call()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		session := func(limit int) (written int, err error) {
			r := p.raw(t)
			_ = r.conn.(*net.TCPConn).SetNoDelay(true)
			c := &cutter{Conn: r.conn, left: limit}
			r.conn = c
			defer func() { _ = c.Close() }()
			config := unverified()
			config.MinVersion, config.MaxVersion = version, version
			config.CurvePreferences = []tls.CurveID{tls.X25519} // a small ClientHello
			_, err = c.Write(untyped(codeSSL, ""))
			if err != nil {
				return c.written, err
			}
			r.reply()
			conn := tls.Client(c, config)
			if err := conn.Handshake(); err != nil {
				return c.written, err
			}
			r.conn = conn
			for _, b := range [][]byte{hello("user", "app", "database", "app"), packet('Q', "select 7\x00"), packet('X', "")} {
				if _, err := conn.Write(b); err != nil {
					return c.written, err
				}
				if b[0] != 'X' {
					r.until('Z')
				}
			}
			_, err = io.Copy(io.Discard, conn)
			return c.written, err
		}
		whole, err := session(1 << 20)
		if err != nil {
			t.Fatalf("a whole session: %v", err)
		}
		for n := 0; n < whole; n++ {
			if _, err := session(n); !errors.Is(err, errCut) {
				t.Fatalf("cut after %d of %d bytes: %v", n, whole, err)
			}
		}
		undisturbed(t, bystander)
	}
	p.quiet(t, 1)
}
