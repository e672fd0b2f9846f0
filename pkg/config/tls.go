package config

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// material is what the settings of one side of TLS, and the files they name, amount to.
type material struct {
	config *tls.Config
	digest [sha256.Size]byte // of everything that went in
}

// Config holds certificates, authorities (RootCAs for servers, ClientCAs for clients), versions, ciphers and curves, and
// nothing that follows from the mode. It is nil when the mode is disable, is not to be changed, and stays the same over a
// reload that brings nothing new.
func (t *TLSSide) Config() *tls.Config { return t.material.config }

// tls reads the files of both sides and turns names into numbers.
func (b *builder) tls(read func(string) ([]byte, error)) {
	client, server := &b.config.TLS.Client, &b.config.TLS.Server
	if s := b.tlsSide("client_tls_", &client.TLSSide, read); s != nil {
		s.curves(client.ECDHCurve)
		s.authorities(func(pool *x509.CertPool) { s.config.ClientCAs = pool })
		if client.CAFile == "" && (client.Mode == TLSVerifyCA || client.Mode == TLSVerifyFull) {
			b.problem("client_tls_sslmode", []string{"client_tls_ca_file"}, "client_tls_sslmode is %s but client_tls_ca_file is blank; allowed: the authorities of clients' certificates, or another mode", client.Mode)
		}
		client.material = s.done()
	}
	if s := b.tlsSide("server_tls_", server, read); s != nil {
		s.authorities(func(pool *x509.CertPool) { s.config.RootCAs = pool })
		server.material = s.done()
	}
}

// tlsReader makes the material of one side.
type tlsReader struct {
	b      *builder
	prefix string
	side   *TLSSide
	read   func(string) ([]byte, error)
	config *tls.Config
	parts  []string
}

func (b *builder) tlsSide(prefix string, side *TLSSide, read func(string) ([]byte, error)) *tlsReader {
	if side.Mode == TLSDisable || b.bad[prefix+"sslmode"] {
		return nil
	}
	s := &tlsReader{b: b, prefix: prefix, side: side, read: read, config: &tls.Config{}}
	s.parts = []string{string(side.Mode), side.Protocols, side.Ciphers}
	var allowed string
	if s.config.MinVersion, s.config.MaxVersion, allowed = parseProtocols(side.Protocols); allowed != "" {
		s.problem("protocols", "is %s; allowed: %s", shown(side.Protocols), allowed)
	}
	if s.config.CipherSuites, allowed = parseCiphers(side.Ciphers); allowed != "" {
		s.problem("ciphers", "is %s; allowed: %s", shown(side.Ciphers), allowed)
	}
	s.certificate()
	return s
}

func (s *tlsReader) problem(key, format string, args ...any) {
	s.b.problem(s.prefix+key, nil, s.prefix+key+" "+format, args...)
}

// file reads what a setting names; false when that failed.
func (s *tlsReader) file(key, path string) ([]byte, bool) {
	data, err := s.read(path)
	if err != nil {
		s.problem(key, "is %s: %s", shown(path), reason(err))
		return nil, false
	}
	s.parts = append(s.parts, string(data))
	return data, true
}

func (s *tlsReader) certificate() {
	certFile, keyFile := s.side.CertFile, s.side.KeyFile
	switch {
	case certFile == "" && keyFile == "":
		return
	case certFile == "":
		s.problem("key_file", "is given but %scert_file is blank; allowed: both or none", s.prefix)
		return
	case keyFile == "":
		s.problem("cert_file", "is given but %skey_file is blank; allowed: both or none", s.prefix)
		return
	}
	cert, okCert := s.file("cert_file", certFile)
	key, okKey := s.file("key_file", keyFile)
	if !okCert || !okKey {
		return
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		s.problem("cert_file", "is %s and %skey_file is %s, which are no pair: %s", shown(certFile), s.prefix, shown(keyFile), strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	s.config.Certificates = []tls.Certificate{pair}
}

func (s *tlsReader) authorities(set func(*x509.CertPool)) {
	if s.side.CAFile == "" {
		return
	}
	data, ok := s.file("ca_file", s.side.CAFile)
	if !ok {
		return
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		s.problem("ca_file", "is %s, which holds no certificate; allowed: certificates in PEM", shown(s.side.CAFile))
		return
	}
	set(pool)
}

func (s *tlsReader) curves(name string) {
	s.parts = append(s.parts, name)
	if strings.EqualFold(name, "auto") || name == "" {
		return
	}
	curve, ok := curves[strings.ToLower(name)]
	if !ok {
		s.problem("ecdhcurve", "is %s; allowed: auto, X25519, prime256v1, secp384r1, secp521r1", shown(name))
		return
	}
	s.config.CurvePreferences = []tls.CurveID{curve}
}

var curves = map[string]tls.CurveID{
	"x25519":     tls.X25519,
	"prime256v1": tls.CurveP256, "secp256r1": tls.CurveP256, "p-256": tls.CurveP256,
	"secp384r1": tls.CurveP384, "p-384": tls.CurveP384,
	"secp521r1": tls.CurveP521, "p-521": tls.CurveP521,
}

func (s *tlsReader) done() material {
	return material{s.config, sha256.Sum256([]byte(fmt.Sprintf("%q", s.parts)))}
}

var protocols = []struct {
	name    string
	version uint16
}{{"tlsv1.0", tls.VersionTLS10}, {"tlsv1.1", tls.VersionTLS11}, {"tlsv1.2", tls.VersionTLS12}, {"tlsv1.3", tls.VersionTLS13}}

// parseProtocols reads a list of versions as PgBouncer does, where ! takes one away.
func parseProtocols(text string) (lowest, highest uint16, allowed string) {
	const forms = "secure, all, or tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3 joined by commas, without a gap"
	chosen := make([]bool, len(protocols))
	choose := func(from int, on bool) {
		for i := from; i < len(chosen); i++ {
			chosen[i] = on
		}
	}
	list := words(text)
	if len(list) == 0 {
		list = []string{"secure"}
	}
	for i, word := range list {
		name, take := strings.CutPrefix(strings.ToLower(word), "!")
		if take && i == 0 {
			choose(0, true)
		}
		switch at := slices.IndexFunc(protocols, func(p struct {
			name    string
			version uint16
		}) bool {
			return p.name == name
		}); {
		case at >= 0:
			chosen[at] = !take
		case name == "all" || name == "legacy" || name == "tlsv1":
			choose(0, !take)
		case name == "secure" || name == "default":
			choose(2, !take)
		default:
			return 0, 0, forms
		}
	}
	first := slices.Index(chosen, true)
	if first < 0 {
		return 0, 0, forms
	}
	last := first
	for last+1 < len(chosen) && chosen[last+1] {
		last++
	}
	if slices.Contains(chosen[last+1:], true) {
		return 0, 0, forms
	}
	return protocols[first].version, protocols[last].version, ""
}

func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(":, ", r) })
}

// parseCiphers reads a list of TLS 1.2 ciphers in OpenSSL's syntax; nil are those that crypto/tls takes by itself. The
// order is crypto/tls's own, and those of TLS 1.3 cannot be chosen.
func parseCiphers(text string) (ids []uint16, allowed string) {
	const forms = "default, secure, fast, normal, all, or OpenSSL's names of ciphers joined by colons, such as ECDHE-RSA-AES128-GCM-SHA256 or HIGH:!3DES"
	switch strings.ToLower(text) {
	case "", "default", "secure", "fast", "normal":
		return nil, ""
	case "all", "compat", "legacy", "insecure":
		text = "ALL"
	}
	removed := map[uint16]bool{} // for good
	for _, word := range words(text) {
		sign := byte(0)
		if strings.IndexByte("!-+", word[0]) >= 0 {
			sign, word = word[0], word[1:]
		}
		if strings.HasPrefix(word, "@") {
			continue // an order, or a security level
		}
		named, ok := ciphersNamed(word)
		if !ok {
			return nil, forms
		}
		for _, id := range named {
			at := slices.Index(ids, id)
			switch {
			case sign == '!', sign == '-':
				removed[id] = removed[id] || sign == '!'
				if at >= 0 {
					ids = slices.Delete(ids, at, at+1)
				}
			case sign == 0 && at < 0 && !removed[id]:
				ids = append(ids, id)
			}
		}
	}
	if len(ids) == 0 {
		return nil, forms + "; nothing is left of these"
	}
	return ids, ""
}

// ciphersNamed are those of a name, or of groups joined by + of which they are in each.
func ciphersNamed(word string) (ids []uint16, ok bool) {
	secure := tls.CipherSuites()
	for i, suite := range append(secure, tls.InsecureCipherSuites()...) {
		if slices.Contains(suite.SupportedVersions, tls.VersionTLS13) {
			continue
		}
		if word == suite.Name || word == opensslName(suite.Name) {
			return []uint16{suite.ID}, true
		}
		in := true
		for _, group := range strings.Split(word, "+") {
			part, known := cipherGroups[group]
			if !known {
				in = false
				continue
			}
			ok = true
			in = in && (part == "" && i < len(secure) || part == "*" || part != "" && strings.Contains(suite.Name, part))
		}
		if in {
			ids = append(ids, suite.ID)
		}
	}
	for _, group := range strings.Split(word, "+") {
		if _, known := cipherGroups[group]; !known {
			return nil, false
		}
	}
	return ids, ok
}

// opensslName turns TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 into ECDHE-RSA-AES128-GCM-SHA256.
func opensslName(name string) string {
	return strings.NewReplacer("TLS_RSA_WITH_", "", "TLS_", "", "_WITH_", "-", "AES_", "AES", "_CBC_SHA", "-SHA", "3DES_EDE_CBC_SHA", "DES-CBC3-SHA",
		"RC4_128", "RC4", "CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", "_", "-").Replace(name)
}

// cipherGroups are OpenSSL's words for many ciphers, and what the names of those have in common: "" are those that
// crypto/tls calls secure, "*" all, and none has "none".
var cipherGroups = map[string]string{
	"DEFAULT": "", "HIGH": "", "ALL": "*", "TLSv1.2": "*",
	"ECDHE": "ECDHE_", "kECDHE": "ECDHE_", "EECDH": "ECDHE_", "kEECDH": "ECDHE_",
	"ECDSA": "_ECDSA_", "aECDSA": "_ECDSA_", "aRSA": "RSA_", "RSA": "TLS_RSA_", "kRSA": "TLS_RSA_",
	"AES": "AES_", "AES128": "AES_128", "AES256": "AES_256", "AESGCM": "_GCM_", "CHACHA20": "CHACHA20",
	"SHA256": "_CBC_SHA256", "3DES": "3DES", "RC4": "RC4",
	"MEDIUM": "none", "LOW": "none", "EXP": "none", "EXPORT": "none", "NULL": "none", "aNULL": "none", "eNULL": "none",
	"MD5": "none", "DES": "none", "IDEA": "none", "SEED": "none", "CAMELLIA": "none", "ARIA": "none", "AESCCM": "none",
	"DH": "none", "DHE": "none", "EDH": "none", "kDHE": "none", "kEDH": "none", "ADH": "none", "AECDH": "none", "DSS": "none", "aDSS": "none",
	"PSK": "none", "kPSK": "none", "SRP": "none", "SHA384": "none",
}
