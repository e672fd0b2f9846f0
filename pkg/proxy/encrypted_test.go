package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// With this flag the tests of this package run once more with TLS on both sides of the proxy: their clients are led
// through a bridge that encrypts, and their servers encrypt.
var encryptedRun = flag.Bool("encrypted", false, "have clients and servers of all tests speak TLS")

func TestMain(m *testing.M) {
	flag.Parse()
	if *encryptedRun {
		cert, certPEM, keyPEM := throwaway()
		pgtest.FakeTLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		pgtest.SharedOptions = pgtest.Options{
			Files:    map[string]string{"server.crt": certPEM, "server.key": keyPEM},
			Settings: map[string]string{"ssl": "on"},
		}
	}
	os.Exit(m.Run())
}

// throwaway is a certificate that nobody verifies.
func throwaway() (cert tls.Certificate, certPEM, keyPEM string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pemOf("CERTIFICATE", der),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// encrypt gives settings the TLS of an encrypted run, unless the test has its own.
func encrypt(set *Settings) {
	if set.ClientTLS == nil {
		set.ClientTLS = NewClientTLS(TLSPrefer, &tls.Config{})
	}
	if set.ServerTLS == nil {
		set.ServerTLS = NewServerTLS(TLSPrefer, anyServer)
	}
}

// anyServer is one for all, so that a reload does not take it for another.
var anyServer = &tls.Config{}

// Reload is the proxy's, with the TLS of an encrypted run.
func (p *pooler) Reload(set *Settings) {
	if *encryptedRun {
		encrypt(set)
	}
	p.Proxy.Reload(set)
}

// bridge leads connections to its address through TLS to a proxy, ends and resets included.
type bridge struct {
	net.Listener
	to    string
	ended sync.WaitGroup
	mu    sync.Mutex
	open  map[net.Conn]struct{}
}

func newBridge(t *testing.T, to string) *bridge {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bridge{Listener: l, to: to, open: map[net.Conn]struct{}{}}
	b.ended.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.ended.Go(func() { b.lead(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		b.mu.Lock()
		for c := range b.open {
			_ = c.Close()
		}
		b.mu.Unlock()
		b.ended.Wait()
	})
	return b
}

func (b *bridge) keep(c net.Conn) (drop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[c] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, c)
		_ = c.Close()
	}
}

func (b *bridge) lead(client *net.TCPConn) {
	defer b.keep(client)()
	dialed, err := net.Dial("tcp", b.to)
	if err != nil {
		return
	}
	defer b.keep(dialed)()
	under := dialed.(*net.TCPConn)
	// Asked for without a request, so that the client may ask too, and be refused.
	config := unverified()
	proxy := tls.Client(under, config)
	if proxy.Handshake() != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, err := io.Copy(client, proxy)
		end(err, client.CloseWrite, client, under)
	})
	_, err = io.Copy(proxy, client)
	end(err, func() error { return errors.Join(proxy.CloseWrite(), under.CloseWrite()) }, client, under)
	back.Wait()
}

// end hands on the end of one direction: orderly, or by a reset, which is the end of both.
func end(err error, orderly func() error, conns ...*net.TCPConn) {
	if err == nil {
		_ = orderly()
		return
	}
	for _, c := range conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
