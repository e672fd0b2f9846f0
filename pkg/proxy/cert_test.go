package proxy

import (
	"crypto/tls"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestACertificateProvesWhoAClientIs(t *testing.T) {
	pgtest.CheckLeaks(t)
	ca := newAuthority(t)
	with := func(name string) *tls.Config {
		c := unverified()
		c.Certificates = []tls.Certificate{ca.issue(name, nil).Certificate}
		return c
	}
	start := func(mode TLSMode) *pooler {
		p, _ := pooledFake(t, echo, func(set *Settings, _ *Route) {
			set.Auth, set.Users = Cert, map[string]string{"app": ""}
			set.ClientTLS = NewClientTLS(mode, &tls.Config{ClientCAs: ca.pool()})
		})
		return p
	}
	p := start(TLSVerifyFull)
	r := p.raw(t).inTLS(with("app")).login()
	r.send(packet('Q', "select 7\x00")).until('Z')
	for name, c := range map[string]struct{ certificate, user string }{
		"another's": {"other", "app"}, "of nobody who is known": {"other", "other"}, "in other letters": {"APP", "app"},
	} {
		t.Run(name, func(t *testing.T) {
			p.raw(t).inTLS(with(c.certificate)).send(hello("user", c.user, "database", "app")).
				refused("28000", "certificate authentication failed for user \""+c.user+"\"")
		})
	}
	t.Run("not verified", func(t *testing.T) {
		start(TLSRequire).raw(t).inTLS(with("app")).send(hello("user", "app", "database", "app")).
			refused("28000", "certificate authentication failed for user \"app\"")
	})
}
