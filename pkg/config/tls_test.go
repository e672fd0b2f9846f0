package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificatePair makes a certificate and its key, in PEM.
func certificatePair(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestTLSIsReadFromItsFiles(t *testing.T) {
	cert, key := certificatePair(t)
	fs := files{"cert": cert, "key": key, "ca": cert, "c.yaml": `
client_tls_sslmode: verify-full
client_tls_cert_file: cert
client_tls_key_file: key
client_tls_ca_file: ca
client_tls_protocols: tlsv1.3
client_tls_ecdhcurve: prime256v1
server_tls_sslmode: verify-full
server_tls_cert_file: cert
server_tls_key_file: key
server_tls_ca_file: ca
server_tls_ciphers: ECDHE-RSA-AES128-GCM-SHA256:TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
`}
	c, err := Load(Input{Args: []string{"c.yaml"}, Read: fs.read})
	if err != nil {
		t.Fatal(err)
	}
	client, server := c.TLS.Client.Config(), c.TLS.Server.Config()
	if len(client.Certificates) != 1 || client.ClientCAs == nil || client.RootCAs != nil || client.MinVersion != tls.VersionTLS13 ||
		client.MaxVersion != tls.VersionTLS13 || !slices.Equal(client.CurvePreferences, []tls.CurveID{tls.CurveP256}) {
		t.Errorf("with clients: %+v", client)
	}
	want := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	if len(server.Certificates) != 1 || server.RootCAs == nil || server.ClientCAs != nil || server.MinVersion != tls.VersionTLS12 ||
		server.MaxVersion != tls.VersionTLS13 || !slices.Equal(server.CipherSuites, want) {
		t.Errorf("with servers: %+v", server)
	}
	if text := fmt.Sprintf("%+v %#v", *c, *c); strings.Contains(text, "PRIVATE KEY") {
		t.Error("printed, the configuration shows a private key")
	}

	t.Run("a broken file refuses the whole", func(t *testing.T) {
		other, _ := certificatePair(t)
		for name, c := range map[string]struct{ file, content, want string }{
			"cut short":       {"cert", cert[:100], `client_tls_cert_file is "cert" and client_tls_key_file is "key", which are no pair: failed to find any PEM data in certificate input`},
			"of another key":  {"cert", other, "which are no pair: private key does not match public key"},
			"no key":          {"key", cert, "which are no pair: found a certificate rather than a key in the PEM for the private key"},
			"no certificates": {"ca", "-", `client_tls_ca_file is "ca", which holds no certificate; allowed: certificates in PEM`},
		} {
			broken := files{}
			for file, content := range fs {
				broken[file] = content
			}
			broken[c.file] = c.content
			_, err := Load(Input{Args: []string{"c.yaml"}, Read: broken.read})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			} else if strings.Contains(err.Error(), "PRIVATE KEY") || strings.Contains(err.Error(), key[40:60]) {
				t.Errorf("%s: the error shows the key: %v", name, err)
			}
		}
	})

	t.Run("a reload", func(t *testing.T) {
		load := func() *Config {
			c, err := Load(Input{Args: []string{"c.yaml"}, Read: fs.read})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		same, changes := c.Reload(load())
		if !changes.None() || same.TLS.Client.Config() != client || same.TLS.Server.Config() != server {
			t.Errorf("that changes nothing brings %+v", changes)
		}
		fs["ca"] += cert
		next, changes := c.Reload(load())
		if want := []string{"client_tls_* files' content", "server_tls_* files' content"}; !slices.Equal(changes.Applied, want) {
			t.Errorf("of other files brings %q, want %q", changes.Applied, want)
		}
		if next.TLS.Client.Config() == client || next.TLS.Server.Config() == server {
			t.Error("of other files keeps the old ones")
		}
	})
}

func TestProtocolsAreReadAsPgBouncerReadsThem(t *testing.T) {
	for text, want := range map[string][2]uint16{
		"": {tls.VersionTLS12, tls.VersionTLS13}, "secure": {tls.VersionTLS12, tls.VersionTLS13}, "default": {tls.VersionTLS12, tls.VersionTLS13},
		"all": {tls.VersionTLS10, tls.VersionTLS13}, "legacy": {tls.VersionTLS10, tls.VersionTLS13}, "tlsv1": {tls.VersionTLS10, tls.VersionTLS13},
		"tlsv1.2": {tls.VersionTLS12, tls.VersionTLS12}, "TLSv1.3": {tls.VersionTLS13, tls.VersionTLS13},
		"tlsv1.1,tlsv1.2": {tls.VersionTLS11, tls.VersionTLS12}, "tlsv1.3:tlsv1.2": {tls.VersionTLS12, tls.VersionTLS13},
		"all, !tlsv1.0": {tls.VersionTLS11, tls.VersionTLS13}, "!tlsv1.3": {tls.VersionTLS10, tls.VersionTLS12},
		"tlsv1.1,tlsv1.3": {}, "sslv3": {}, "!all": {}, "secure,!secure": {}, "tlsv1.4": {}, ",!": {},
	} {
		lowest, highest, allowed := parseProtocols(text)
		if lowest != want[0] || highest != want[1] || (allowed == "") != (want[0] != 0) {
			t.Errorf("%q: %x to %x (%s), want %x", text, lowest, highest, allowed, want)
		}
	}
}

func TestCiphersAreReadInOpenSSLsSyntax(t *testing.T) {
	names := func(ids []uint16) (list []string) {
		for _, id := range ids {
			list = append(list, opensslName(tls.CipherSuiteName(id)))
		}
		return list
	}
	for text, want := range map[string]string{
		"default": "", "Secure": "", "fast": "", "normal": "", "": "",
		"ECDHE-RSA-AES128-GCM-SHA256":                                               "ECDHE-RSA-AES128-GCM-SHA256",
		"ECDHE-RSA-CHACHA20-POLY1305 ECDHE-ECDSA-AES256-GCM-SHA384":                 "ECDHE-RSA-CHACHA20-POLY1305 ECDHE-ECDSA-AES256-GCM-SHA384",
		"AES128-SHA:DES-CBC3-SHA,RC4-SHA:ECDHE-RSA-AES128-SHA256":                   "AES128-SHA DES-CBC3-SHA RC4-SHA ECDHE-RSA-AES128-SHA256",
		"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA":                                        "ECDHE-RSA-AES256-SHA",
		"ECDHE+AESGCM:!ECDSA":                                                       "ECDHE-RSA-AES128-GCM-SHA256 ECDHE-RSA-AES256-GCM-SHA384",
		"HIGH:MEDIUM:+3DES:!aNULL:!SHA256:-AES:@STRENGTH":                           "ECDHE-RSA-CHACHA20-POLY1305 ECDHE-ECDSA-CHACHA20-POLY1305",
		"EECDH+AES256:!ECDSA:!AESGCM":                                               "ECDHE-RSA-AES256-SHA",
		"ECDHE-RSA-AES128-GCM-SHA256:!ECDHE:ECDHE-RSA-AES256-SHA:RSA+AES256+AESGCM": "AES256-GCM-SHA384",
		"HIGH:ROT13": "refused", "!ALL": "refused", "ECDHE+ROT13": "refused", "HIGH:!": "refused", "aNULL": "refused",
	} {
		ids, allowed := parseCiphers(text)
		got := strings.Join(names(ids), " ")
		if allowed != "" {
			got = "refused"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	all, _ := parseCiphers("all")
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		of13 := slices.Contains(suite.SupportedVersions, tls.VersionTLS13)
		if slices.Contains(all, suite.ID) == of13 {
			t.Errorf("all has %s: %v", suite.Name, !of13)
		}
	}
}

// FuzzTLSNames: whatever is written, it is understood within the bounds or refused.
func FuzzTLSNames(f *testing.F) {
	f.Add("all:!tlsv1.0")
	f.Add("ECDHE+AESGCM:!ECDSA")
	f.Fuzz(func(t *testing.T, text string) {
		if lowest, highest, allowed := parseProtocols(text); allowed == "" && (lowest < tls.VersionTLS10 || highest > tls.VersionTLS13 || lowest > highest) {
			t.Errorf("%q: %x to %x", text, lowest, highest)
		}
		ids, allowed := parseCiphers(text)
		for i, id := range ids {
			if allowed != "" || slices.Contains(ids[:i], id) || tls.CipherSuiteName(id) == "" {
				t.Errorf("%q: %x", text, ids)
			}
		}
	})
}
