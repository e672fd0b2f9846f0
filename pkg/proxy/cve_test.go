package proxy

import (
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// What was once a vulnerability of PgBouncer's, by its number. More of each kind is in the tables of the hostile tests.

// CVE-2026-6664: a client that has not proved anything sends a SCRAM packet whose inner length overflows. M21
func TestCVE20266664AnOverflowingLengthInASCRAMPacketEndsItsClientAlone(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := plainProxy(t, ScramSHA256, nil)
	const first = "n,,n=,r=abcdefghijklmnop"
	for name, length := range map[string]string{
		"the largest": "\x7f\xff\xff\xff", "the most negative": "\x80\x00\x00\x00", "-1": "\xff\xff\xff\xff", "-5, so that a header added to it is none": "\xff\xff\xff\xfb",
		"one that wraps to the rest": "\xff\xff\xff\xe8", "a page more": "\x00\x00\x10\x18",
	} {
		t.Run(name, func(t *testing.T) {
			r := p.raw(t).send(hello("user", "app"))
			r.until('R')
			r.send(packet('p', "SCRAM-SHA-256\x00"+length+first))
			if kinds, errs := r.ending(); kinds != "E" || errs[0].Code != "08P01" || !strings.HasPrefix(errs[0].Message, "malformed SCRAM message: length is ") {
				t.Errorf("got %q %+v, want one 08P01 about the length", kinds, errs)
			}
		})
	}
	p.quiet(t, 0)
}

// CVE-2026-6666: an ErrorResponse without SQLSTATE, message or severity, to a client and to the pooler itself. M21
func TestCVE20266666AnErrorWithoutItsFieldsIsPassedOnAndHurtsNobody(t *testing.T) {
	pgtest.CheckLeaks(t)
	bodies := map[string]string{
		"nothing": "", "only the end": "\x00", "no SQLSTATE": "SERROR\x00VERROR\x00Mno\x00\x00", "no message": "SERROR\x00VERROR\x00C22012\x00\x00",
		"no severity": "C22012\x00Mno\x00\x00", "a field without its end": "SERROR\x00C2", "empty fields": "S\x00C\x00M\x00\x00", "one letter": "M",
	}
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		for {
			sql := c.Query()
			if body, hostile := bodies[sql]; hostile {
				c.Frame('E', int32(4+len(body)), []byte(body))
				c.Ready('I')
				continue
			}
			if strings.HasPrefix(sql, "SET") { // said by the pooler: the client's parameters
				c.Frame('E', 5, []byte{0})
				c.Ready('I')
				continue
			}
			c.Answer(sql)
		}
	}, func(_ *Settings, r *Route) { r.Pool.Size = 1 })
	r := p.raw(t).login()
	for name, body := range bodies {
		r.send(packet('Q', name+"\x00"))
		m, err := r.hear()
		if err != nil || m.kind != 'E' || string(m.body) != body {
			t.Errorf("%s: the client got %q %q, %v", name, m.kind, m.body, err)
		}
		r.until('Z')
		if got := r.ask("select 7"); got != "select 7" {
			t.Errorf("%s: the next answer is %q", name, got)
		}
	}
	other := p.raw(t).send(hello("user", "app", "database", "app", "application_name", "mine"))
	other.until('Z')
	other.send(packet('Q', "select 1\x00"))
	if _, errs := other.ending(); len(errs) != 1 || errs[0].Severity != "FATAL" {
		t.Errorf("whose parameters were refused without a word got %+v", errs)
	}
	if got := r.ask("select 7"); got != "select 7" {
		t.Errorf("afterwards the answer is %q", got)
	}
}

// CVE-2025-12819: what an unauthenticated client wants its session to be must not reach any session of a server. M22
func TestCVE202512819StartupParametersOfWhoHasProvedNothingReachNoServer(t *testing.T) {
	var mu sync.Mutex
	var heard []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, s)
	}
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		for name, value := range c.Login() {
			note(name + "=" + value)
		}
		for {
			sql := c.Query()
			note(sql)
			c.Answer(sql)
		}
	}, func(s *Settings, r *Route) {
		s.Auth, s.Users = Plain, map[string]string{"app": "secret"}
		s.Tracked = append(s.Tracked, "search_path")
		r.Pool.Size = 1
	})
	for _, start := range [][]byte{
		hello("user", "app", "search_path", "evil"), hello("user", "app", "options", "-c search_path=evil"),
		hello("user", "app", "options", "--search-path=evil"), hello("user", "nobody", "search_path", "evil"),
	} {
		r := p.raw(t).send(start)
		r.until('R')
		r.send(packet('p', "wrong\x00"))
		if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "28P01" {
			t.Errorf("got %+v", errs)
		}
		p.raw(t).send(start).until('R') // and one that says nothing more
	}
	right := p.raw(t).send(hello("user", "app", "database", "app"))
	right.until('R')
	right.send(packet('p', "secret\x00")).until('Z')
	if got := right.ask("select 7"); got != "select 7" {
		t.Errorf("got %q", got)
	}
	said := func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(heard, "\n")
	}
	if s := said(); strings.Contains(s, "evil") || strings.Contains(strings.ToLower(s), "search_path") {
		t.Errorf("the server was told\n%s", s)
	}
	// Who has proved the password gets what it asks for.
	welcome := p.raw(t).send(hello("user", "app", "database", "app", "search_path", "mine"))
	welcome.until('R')
	welcome.send(packet('p', "secret\x00")).until('Z')
	welcome.ask("select 7")
	if s := said(); !strings.Contains(s, "mine") {
		t.Errorf("the server was not told what an authenticated client wants, but\n%s", s)
	}
}

// Whatever a client calls it: by its own name, by the pooler's, in either protocol. M10
func TestNobodyReachesAnothersPreparedStatement(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	victim, thief := p.call(), p.call()
	victim.send(&pgproto3.Parse{Name: "theirs", Query: "select 'secret'"}, &pgproto3.Sync{})
	victim.reply()
	own := victim.must("select name from pg_prepared_statements")
	if !strings.HasPrefix(own, "pgberth_") {
		t.Fatalf("the server calls it %q", own)
	}
	for _, name := range []string{"theirs", own} {
		for how, messages := range map[string][]pgproto3.FrontendMessage{
			"Bind":                {&pgproto3.Bind{PreparedStatement: name}, &pgproto3.Execute{}, &pgproto3.Sync{}},
			"Describe":            {&pgproto3.Describe{ObjectType: 'S', Name: name}, &pgproto3.Sync{}},
			"DEALLOCATE":          {&pgproto3.Query{String: "deallocate " + name}},
			"DEALLOCATE, quoted":  {&pgproto3.Query{String: `deallocate prepare "` + name + `"`}},
			"DEALLOCATE, by Bind": {&pgproto3.Parse{Query: "deallocate " + name}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}},
		} {
			thief.send(messages...)
			if r := thief.reply(); r.err == nil || r.err.Code != "26000" || len(r.rows) > 0 || r.status != 'I' {
				t.Errorf("%s of %s was answered by %+v", how, name, r)
			}
			thief.send(&pgproto3.Close{ObjectType: 'S', Name: name}, &pgproto3.Sync{})
			thief.reply()
			victim.send(&pgproto3.Bind{PreparedStatement: "theirs"}, &pgproto3.Execute{}, &pgproto3.Sync{})
			if r := victim.reply(); r.value(0) != "secret" {
				t.Errorf("after %s of %s its owner was answered by %+v", how, name, r)
			}
		}
	}
}
