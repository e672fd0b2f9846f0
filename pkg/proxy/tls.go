package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// alpn is PostgreSQL's name in the TLS handshake.
const alpn = "postgresql"

// TLSMode is PgBouncer's sslmode, of one side.
type TLSMode uint8

const (
	// TLSDisable is no TLS.
	TLSDisable TLSMode = iota
	// TLSAllow takes clients as they come; a server is asked for TLS when it does not let the pooler in without.
	TLSAllow
	// TLSPrefer takes clients as they come; a server is asked for TLS, and done without where it has none.
	TLSPrefer
	// TLSRequire lets nothing pass in clear. Nobody's certificate is looked at.
	TLSRequire
	// TLSVerifyCA wants a certificate by one of the authorities, of servers and of clients.
	TLSVerifyCA
	// TLSVerifyFull wants it to bear the server's name, too. For clients it is TLSVerifyCA.
	TLSVerifyFull
)

func (m TLSMode) String() string {
	return [...]string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}[m]
}

// ClientTLS is TLS with clients.
type ClientTLS struct {
	mode   TLSMode
	config *tls.Config
}

// NewClientTLS makes TLS with clients of certificates, versions, ciphers, curves and, in ClientCAs, authorities; all else
// follows from the mode. Without a certificate one is made in memory, when the first client needs it. Nil means that no
// TLS is offered.
func NewClientTLS(mode TLSMode, base *tls.Config) *ClientTLS {
	if mode == TLSDisable {
		return nil
	}
	c := base.Clone()
	c.NextProtos = []string{alpn}
	if mode >= TLSVerifyCA {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if len(c.Certificates) == 0 {
		made := sync.OnceValues(selfMade)
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return made() }
	}
	common(c)
	return &ClientTLS{mode, c}
}

// demanded: clients without TLS are refused.
func (t *ClientTLS) demanded() bool { return t != nil && t.mode >= TLSRequire }

// common is what holds for both sides. Sessions are not resumed, as with PostgreSQL: connections live long. Records are
// as large as they may be, instead of fitting packets until much has been sent: a result is read as a whole.
func common(c *tls.Config) {
	c.SessionTicketsDisabled = true
	c.DynamicRecordSizingDisabled = true
}

// ServerTLS is TLS with servers.
type ServerTLS struct {
	mode TLSMode
	base *tls.Config
}

// NewServerTLS makes TLS with servers of certificates to be shown to them, versions, ciphers and, in RootCAs, authorities
// (nil are the system's). Nil means that no server is asked for TLS.
func NewServerTLS(mode TLSMode, base *tls.Config) *ServerTLS {
	if mode == TLSDisable {
		return nil
	}
	return &ServerTLS{mode, base}
}

// same: connections made with one are as good as those made with the other.
func (t *ServerTLS) same(other *ServerTLS) bool {
	if t == nil || other == nil {
		return t == other
	}
	return *t == *other
}

// config is what a connection to host is made with.
func (t *ServerTLS) config(host string) *tls.Config {
	c := t.base.Clone()
	c.ServerName = host // crypto/tls knows not to send it when it is an address
	c.NextProtos = []string{alpn}
	// Verified below, in the modes that do, because crypto/tls knows one way only: chain and name, and the name not where
	// many of PostgreSQL's certificates have it.
	c.InsecureSkipVerify = true
	if t.mode >= TLSVerifyCA {
		c.VerifyConnection = func(state tls.ConnectionState) error {
			return verify(state.PeerCertificates, c.RootCAs, t.mode, host)
		}
	}
	common(c)
	return c
}

func verify(chain []*x509.Certificate, roots *x509.CertPool, mode TLSMode, host string) error {
	if len(chain) == 0 {
		return fmt.Errorf("the server has shown no certificate")
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return err
	}
	if mode == TLSVerifyFull {
		return bearsName(chain[0], host)
	}
	return nil
}

// bearsName checks that a certificate bears a host's name or address. As with libpq the common name counts where there are
// no alternative names, which is how PostgreSQL's manual has certificates made.
func bearsName(cert *x509.Certificate, host string) error {
	if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) == 0 {
		name := cert.Subject.CommonName
		if net.ParseIP(host) != nil && name == host {
			return nil
		}
		old := *cert
		old.DNSNames = []string{name}
		if name != "" && old.VerifyHostname(host) == nil {
			return nil
		}
		return fmt.Errorf("the server's certificate is for %q, not for %q", name, host)
	}
	return cert.VerifyHostname(host)
}

// endPoint is the channel binding tls-server-end-point (RFC 5929) of a server that has shown this certificate; nil where
// the RFC defines none.
func endPoint(cert *x509.Certificate) []byte {
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.DSAWithSHA256, x509.ECDSAWithSHA256, x509.SHA256WithRSAPSS:
		sum := sha256.Sum256(cert.Raw)
		return sum[:]
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		sum := sha512.Sum384(cert.Raw)
		return sum[:]
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		sum := sha512.Sum512(cert.Raw)
		return sum[:]
	}
	return nil
}

// selfMade is a certificate for clients that want encryption and do not ask whom they speak to.
func selfMade() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := new(big.Int).SetBytes(randomBytes(16))
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "localhost", Organization: []string{"pgberth, made at its start"}},
		NotBefore:    time.Now().Add(-time.Hour), // clocks differ
		NotAfter:     time.Now().AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
