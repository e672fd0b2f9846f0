package proxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// md5Settings are those of a pooler whose users app and other have secrets of the forms given.
func md5Settings(s *pgtest.Server, users map[string]string) *Settings {
	set := testSettings(s.Host, s.Port, nil)
	set.Auth, set.Users = MD5, users
	return set
}

func TestMD5ProvesPasswordsOfTheUserList(t *testing.T) {
	pgtest.CheckLeaks(t)
	for form, secret := range stored() {
		t.Run(form, func(t *testing.T) {
			p := startProxy(t, md5Settings(pgtest.Shared(t), map[string]string{"app": secret}))
			if _, err := p.login("app", "secret"); err != nil {
				t.Errorf("the right password: %v", err)
			}
			p.keptOut(t, "app", "wrong")
			p.keptOut(t, "app", "Secret")
			p.keptOut(t, "nobody", "secret")
			if form == "a SCRAM verifier" {
				p.keptOut(t, "app", secret)
			}
			if strings.Contains(p.logs.String(), secret) {
				t.Error("a secret is in the log")
			}
		})
	}
}

// attemptMD5 plays an md5 login and returns the conversation, and the salt.
func attemptMD5(t *testing.T, r *raw, user, database, password string) (heard, salt string) {
	t.Helper()
	r.send(hello("user", user, "database", database))
	m, err := r.hear()
	if err != nil || m.kind != 'R' || string(m.body[:4]) != "\x00\x00\x00\x05" || len(m.body) != 8 {
		t.Fatalf("want an md5 challenge, got %q %q, %v", m.kind, m.body, err)
	}
	salt = string(m.body[4:])
	r.send(packet('p', scram.MD5(user, password, [4]byte(m.body[4:]))+"\x00"))
	kinds, errs := r.ending()
	for _, e := range errs {
		kinds += fmt.Sprintf(" %s %s %s", e.Severity, e.Code, strings.ReplaceAll(e.Message, user, "USER"))
	}
	return kinds, salt
}

func TestWhateverIsWrongWithAnMD5LoginLooksTheSame(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := startProxy(t, md5Settings(pgtest.Shared(t), map[string]string{"app": "secret", "empty": "", "hashed": stored()["an md5 hash"]}))
	want := `E FATAL 28P01 password authentication failed for user "USER"`
	salts := map[string]bool{}
	for _, c := range [][3]string{
		{"app", "app", "wrong"}, {"nobody", "app", "secret"}, {"app", "nowhere", "secret"}, {"app", "nowhere", "wrong"},
		{"empty", "app", ""}, {"empty", "app", "x"}, {"hashed", "app", "secret"}, {"nobody", "nowhere", ""},
	} {
		got, salt := attemptMD5(t, p.raw(t), c[0], c[1], c[2])
		if got != want {
			t.Errorf("%v: %s", c, got)
		}
		if salts[salt] {
			t.Errorf("%v: a salt was used twice", c)
		}
		salts[salt] = true
	}
}

func TestAnMD5AnswerIsGoodForItsOwnChallengeOnly(t *testing.T) {
	p := startProxy(t, md5Settings(pgtest.Shared(t), map[string]string{"app": "secret"}))
	first := p.raw(t).send(hello("user", "app", "database", "app"))
	m := first.until('R')
	answer := packet('p', scram.MD5("app", "secret", [4]byte(m.body[4:]))+"\x00")
	first.send(answer).until('Z')
	second := p.raw(t).send(hello("user", "app", "database", "app"))
	second.until('R')
	second.send(answer).refused("28P01", `password authentication failed for user "app"`)
}

func TestHostileMD5Answers(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := startProxy(t, md5Settings(pgtest.Shared(t), map[string]string{"app": "secret"}))
	for attack, c := range map[string]struct {
		message        []byte
		code, message2 string
	}{
		"nothing":               {packet('p', ""), "08P01", "invalid password packet"},
		"no end":                {packet('p', "md5"), "08P01", "invalid password packet"},
		"an empty answer":       {packet('p', "\x00"), "28P01", `password authentication failed for user "app"`},
		"a NUL inside":          {packet('p', "md5\x00abc\x00"), "28P01", `password authentication failed for user "app"`},
		"the password in clear": {packet('p', "secret\x00"), "28P01", `password authentication failed for user "app"`},
		"a long answer":         {packet('p', strings.Repeat("x", 4000)+"\x00"), "28P01", `password authentication failed for user "app"`},
		"a query":               {packet('Q', "select 1\x00"), "08P01", "expected password response, got message type 'Q'"},
		"a huge answer":         {partial('p', 1<<20, "md5"), "08P01", "bad packet header: message 'p' announces length 1048576, allowed is 4 to 4096"},
	} {
		t.Run(attack, func(t *testing.T) {
			r := p.raw(t).send(hello("user", "app", "database", "app"))
			r.until('R')
			r.send(c.message).refused(c.code, c.message2)
		})
	}
}

// askedFor is the method that the pooler asks a user for: a code of Authentication messages.
func (p *pooler) askedFor(t *testing.T, user string) byte {
	t.Helper()
	r := p.raw(t).send(hello("user", user, "database", "app"))
	defer func() { _ = r.conn.Close() }()
	return r.until('R').body[3]
}

func TestUsersWhoDoNotExistAreAskedLikeThoseWhoDo(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	verifier := scram.NewVerifier("secret", []byte("sixteen bytes of"), 5000).String()
	for name, c := range map[string]struct {
		users map[string]string
		want  string // methods seen of many unknown users
	}{
		"md5 hashes and plain": {map[string]string{"a": "secret", "b": stored()["an md5 hash"]}, "\x05"},
		"verifiers":            {map[string]string{"a": verifier}, "\x0a"},
		"both":                 {map[string]string{"a": verifier, "b": "secret"}, "\x05\x0a"},
		"none":                 {map[string]string{}, "\x0a"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, md5Settings(s, c.users))
			seen := map[byte]bool{}
			for i := range 30 {
				user := fmt.Sprint("unknown", i)
				how := p.askedFor(t, user)
				seen[how] = true
				if p.askedFor(t, user) != how {
					t.Errorf("%s is asked for something else the second time", user)
				}
			}
			got := ""
			for _, how := range []byte{5, 10} {
				if seen[how] {
					got += string(how)
				}
			}
			if got != c.want {
				t.Errorf("unknown users are asked for %q, want %q", got, c.want)
			}
		})
	}

	t.Run("with the iterations of the others", func(t *testing.T) {
		set := md5Settings(s, map[string]string{"app": verifier})
		set.Auth = ScramSHA256
		p := startProxy(t, set)
		known, unknown := attemptSCRAM(t, p.raw(t), "app", "app", "wrong"), attemptSCRAM(t, p.raw(t), "nobody", "app", "wrong")
		if known != unknown || !strings.HasSuffix(known, "iterations 5000") {
			t.Errorf("a user who exists:       %s\none who does not exist: %s", known, unknown)
		}
	})
}

func TestKeysProvedByAClientOpenItsServerConnections(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := serverAsking(t, pgtest.SCRAM, "keyholder", "right")
	own := query(t, s, "select rolpassword from pg_authid where rolname = 'keyholder'")[0][0]
	settings := func(auth AuthType, secret string) *Settings {
		set := testSettings(s.Host, s.Port, nil)
		route := set.Route
		set.Auth, set.Users = auth, map[string]string{"keyholder": secret}
		set.Route = func(database, user string) (Route, bool) {
			r, ok := route(database, user)
			r.User, r.Password = user, set.Users[user]
			return r, ok
		}
		return set
	}
	for name, auth := range map[string]AuthType{"scram-sha-256": ScramSHA256, "md5": MD5, "plain": Plain, "passthrough": Passthrough} {
		t.Run(name, func(t *testing.T) {
			p := startProxy(t, settings(auth, own))
			p.keptOut(t, "keyholder", "wrong")
			p.letIn(t, "keyholder", "right")
			p.letIn(t, "keyholder", "right")
			if d := p.state().Counters.Dials; d != 1 {
				t.Errorf("%d logins at the server, want 1", d)
			}
		})
	}
	t.Run("not with a verifier of another salt", func(t *testing.T) {
		other := scram.NewVerifier("right", []byte("sixteen bytes of"), 4096).String()
		p := startProxy(t, settings(ScramSHA256, other))
		_, err := p.login("keyholder", "right")
		if err == nil || !strings.Contains(err.Error(), "the server's SCRAM salt or iterations are not those of the stored verifier; store the server's own") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not for a user who is forced", func(t *testing.T) {
		set := settings(ScramSHA256, own)
		route := set.Route
		set.Route = func(database, _ string) (Route, bool) {
			r, ok := route(database, "keyholder")
			r.User, r.Password = "somebody", ""
			return r, ok
		}
		p := startProxy(t, set)
		_, err := p.login("keyholder", "right")
		if err == nil || !strings.Contains(err.Error(), "server asks for SCRAM-SHA-256 and no password is known") {
			t.Errorf("got %v", err)
		}
	})
}

func TestIterationsOfAuthQueryAreThoseOfEverybody(t *testing.T) {
	var n census
	n.of(&Settings{Users: map[string]string{"a": "SCRAM-SHA-256$5000:x", "b": "SCRAM-SHA-256$5000:y", "c": "SCRAM-SHA-256$6000:z", "d": "secret", "e": "SCRAM-SHA-256$-1:x"}})
	if got := n.mockIterations(4096); got != 5000 {
		t.Errorf("most of the user list have 5000, got %d", got)
	}
	n.saw("SCRAM-SHA-256$7000:x$y:z")
	n.saw("secret")
	if got := n.mockIterations(4096); got != 7000 {
		t.Errorf("those who are looked up have 7000, got %d", got)
	}
}
