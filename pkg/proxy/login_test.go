package proxy

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// stored are the forms in which a user list holds the password "secret" of the user app.
func stored() map[string]string {
	sum := md5.Sum([]byte("secret" + "app"))
	return map[string]string{
		"in clear":         "secret",
		"an md5 hash":      "md5" + hex.EncodeToString(sum[:]),
		"a SCRAM verifier": scram.NewVerifier("secret", []byte("sixteen bytes of"), 4096).String(),
	}
}

func TestDriversLogInWithThePasswordsOfTheUserList(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	for name, auth := range map[string]AuthType{"plain": Plain, "scram-sha-256": ScramSHA256} {
		for form, secret := range stored() {
			t.Run(name+" with "+form, func(t *testing.T) {
				set := testSettings(s.Host, s.Port, nil)
				set.Auth, set.Users = auth, map[string]string{"app": secret}
				p := startProxy(t, set)
				login := func(user, password string) error {
					ctx, stop := context.WithTimeout(context.Background(), patience)
					defer stop()
					c, err := pgx.Connect(ctx, fmt.Sprintf("postgres://%s:%s@%s/app?sslmode=disable", user, password, p.Addr))
					if err == nil {
						_ = c.Close(ctx)
					}
					return err
				}
				err := login("app", "secret")
				if impossible := auth == ScramSHA256 && form == "an md5 hash"; (err != nil) != impossible {
					t.Errorf("the right password: %v", err)
				}
				for user, password := range map[string]string{"app": "wrong", "nobody": "secret"} {
					var refusal *pgconn.PgError
					if err := login(user, password); !errors.As(err, &refusal) || refusal.Code != "28P01" {
						t.Errorf("%s with the password %q: %v", user, password, err)
					}
				}
				// The form of the list itself is worth nothing in plain.
				if auth == Plain && form != "in clear" {
					if err := login("app", secret); err == nil {
						t.Error("the stored secret was taken for the password")
					}
				}
				if log := p.logs.String(); strings.Contains(log, secret) || strings.Contains(log, "wrong\"") {
					t.Error("a secret is in the log")
				}
			})
		}
	}
}

// attemptSCRAM plays a SCRAM login with a password and returns the conversation up to its end, secrets left out.
func attemptSCRAM(t *testing.T, r *raw, user, database, password string) string {
	t.Helper()
	var heard strings.Builder
	hear := func() []byte {
		m, err := r.hear()
		if err != nil {
			return nil
		}
		if m.kind == 'E' {
			e := errorOf(t, m)
			fmt.Fprintf(&heard, "%s %s %s;", e.Severity, e.Code, strings.ReplaceAll(e.Message, user, "USER"))
			return nil
		}
		fmt.Fprintf(&heard, "%c%d", m.kind, len(m.body))
		return m.body
	}
	c := scram.NewClient(password, []byte("eighteen bytes long"))
	r.send(hello("user", user, "database", database))
	if b := hear(); b == nil {
		return heard.String()
	}
	first := c.First()
	r.send(packet('p', scram.Mechanism+"\x00\x00\x00\x00"+string(rune(len(first)))+string(first)))
	challenge := hear()
	if challenge == nil {
		return heard.String()
	}
	_, parts, _ := bytes.Cut(challenge[4:], []byte(",s="))
	final, err := c.Challenge(challenge[4:])
	if err != nil {
		t.Fatal(err)
	}
	r.send(packet('p', string(final)))
	hear()
	rest, _ := r.ending()
	_, iterations, _ := bytes.Cut(parts, []byte(",i="))
	return heard.String() + rest + " iterations " + string(iterations)
}

// attemptPlain is attemptSCRAM for a password in clear.
func attemptPlain(t *testing.T, r *raw, user, database, password string) string {
	t.Helper()
	r.send(hello("user", user, "database", database), packet('p', password+"\x00"))
	kinds, errs := r.ending()
	for _, e := range errs {
		kinds += fmt.Sprintf(" %s %s %s;", e.Severity, e.Code, strings.ReplaceAll(e.Message, user, "USER"))
	}
	return kinds
}

func TestWhateverIsWrongWithALoginLooksTheSame(t *testing.T) {
	for _, c := range []struct {
		name string
		auth AuthType
		try  func(*testing.T, *raw, string, string, string) string
	}{{"plain", Plain, attemptPlain}, {"scram-sha-256", ScramSHA256, attemptSCRAM}, {"passthrough", Passthrough, attemptPlain}} {
		t.Run(c.name, func(t *testing.T) {
			var p *pooler
			if c.auth == Passthrough {
				p, _, _ = behindVault(t, nil, nil)
			} else {
				p = plainProxy(t, c.auth, nil)
			}
			wrong := c.try(t, p.raw(t), "app", "app", "wrong")
			if !strings.Contains(wrong, "FATAL 28P01 password authentication failed for user \"USER\"") {
				t.Fatalf("a wrong password: %s", wrong)
			}
			right := "secret"
			if c.auth == Passthrough {
				right = "right"
			}
			for what, got := range map[string]string{
				"an unknown user":                       c.try(t, p.raw(t), "nob", "app", "wrong"),
				"an unknown database":                   c.try(t, p.raw(t), "app", "nowhere", "wrong"),
				"an unknown database, password right":   c.try(t, p.raw(t), "app", "nowhere", right),
				"unknown user and database":             c.try(t, p.raw(t), "nob", "nowhere", "wrong"),
				"an unknown user and a listed password": c.try(t, p.raw(t), "nob", "nowhere", right),
			} {
				if got != wrong {
					t.Errorf("%s\ngot  %s\nwant %s", what, got, wrong)
				}
			}
		})
	}
}

func TestTheSaltOfAnUnknownUserStaysTheSame(t *testing.T) {
	p := plainProxy(t, ScramSHA256, nil)
	salt := func(user string) string {
		r := p.raw(t).send(hello("user", user))
		r.until('R')
		r.send(packet('p', scram.Mechanism+"\x00\x00\x00\x00\x0bn,,n=,r=abc"))
		_, s, _ := strings.Cut(string(r.until('R').body), ",s=")
		return s
	}
	if a, b := salt("nobody"), salt("nobody"); a != b {
		t.Errorf("the challenge of an unknown user was %s, then %s", a, b)
	}
	if a, b := salt("app"), salt("app"); a != b {
		t.Errorf("the challenge of a known user was %s, then %s", a, b)
	}
	if a, b := salt("nobody"), salt("nobody2"); a == b {
		t.Error("two unknown users have the same salt")
	}
}

func TestTrustLetsListedUsersInAndAnyEverybody(t *testing.T) {
	trusting := plainProxy(t, Trust, nil)
	trusting.raw(t).login()
	trusting.raw(t).send(hello("user", "nobody", "database", "app")).refused("28P01", `password authentication failed for user "nobody"`)
	trusting.raw(t).send(hello("user", "app", "database", "nowhere")).refused("3D000", "no such database: nowhere")

	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		user := c.Login()["user"]
		for {
			c.Query()
			c.Answer(user)
		}
	}, func(s *Settings, r *Route) { s.Auth, r.User = Any, "forced" })
	r := p.raw(t).send(hello("user", "nobody", "database", "app"))
	r.until('Z')
	if got := r.ask("who am I"); got != "forced" {
		t.Errorf("the server sees %q", got)
	}
}

// S57, M24
func TestProtocolVersionsAreNegotiated(t *testing.T) {
	p, _ := pooledFake(t, echo, nil)
	user := "user\x00app\x00database\x00app\x00"
	for name, c := range map[string]struct {
		code uint32
		body string
		want string // body of NegotiateProtocolVersion, "" is none
		key  int    // bytes of the cancel key
	}{
		"3.0":                       {3 << 16, user, "", 4},
		"3.1":                       {3<<16 | 1, user, "\x00\x03\x00\x00\x00\x00\x00\x00", 4},
		"3.2":                       {3<<16 | 2, user, "", 16},
		"3.9999":                    {3<<16 | 9999, user, "\x00\x03\x00\x02\x00\x00\x00\x00", 16},
		"3.0 with an option":        {3 << 16, user + "_pq_.fancy\x00on\x00", "\x00\x03\x00\x00\x00\x00\x00\x01_pq_.fancy\x00", 4},
		"3.2 with two options":      {3<<16 | 2, "_pq_.b\x00\x00" + user + "_pq_.a\x001\x00", "\x00\x03\x00\x02\x00\x00\x00\x02_pq_.b\x00_pq_.a\x00", 16},
		"libpq's probe for honesty": {3<<16 | 9999, user + "_pq_.test_protocol_negotiation\x00\x00", "\x00\x03\x00\x02\x00\x00\x00\x01_pq_.test_protocol_negotiation\x00", 16},
	} {
		t.Run(name, func(t *testing.T) {
			r := p.raw(t).send(untyped(c.code, c.body+"\x00"))
			m, err := r.hear()
			if err != nil {
				t.Fatal(err)
			}
			if c.want != "" {
				if m.kind != 'v' || string(m.body) != c.want {
					t.Fatalf("got %q %q, want NegotiateProtocolVersion %q", m.kind, m.body, c.want)
				}
				m, _ = r.hear()
			}
			if m.kind != 'R' {
				t.Fatalf("got %q, want AuthenticationOk", m.kind)
			}
			if key := r.until('K'); len(key.body) != 4+c.key {
				t.Errorf("the cancel key has %d bytes, want %d", len(key.body)-4, c.key)
			}
			r.until('Z')
			if got := r.ask("select 7"); got != "select 7" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestEncryptionMayBeAskedForInEitherOrder(t *testing.T) {
	p, _ := pooledFake(t, echo, nil)
	for _, order := range [][]uint32{{codeSSL}, {codeGSS}, {codeSSL, codeGSS}, {codeGSS, codeSSL}} {
		r := p.raw(t)
		for _, code := range order {
			if b := r.send(untyped(code, "")).reply(); b != 'N' {
				t.Fatalf("answered by %q", b)
			}
		}
		r.login()
	}
}

// S3, S60
func TestReplicationIsRefused(t *testing.T) {
	p, f := pooledFake(t, echo, nil)
	for _, value := range []string{"true", "on", "1", "yes", "database", "DATABASE"} {
		p.raw(t).send(hello("user", "app", "replication", value)).
			refused("0A000", "replication connections are not pooled: connect to the database server directly")
	}
	if n := f.Accepted(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
	for _, value := range []string{"false", "off", "0", "no"} {
		p.raw(t).send(hello("user", "app", "replication", value)).until('Z')
	}
}

func TestStartupParametersAreKeptIgnoredOrRefused(t *testing.T) {
	p := pooledPostgres(t, nil)
	show := func(r *raw, name string) string { return r.ask("show " + name) }
	for name, c := range map[string]struct {
		params []string
		want   map[string]string
	}{
		"tracked ones are applied": {
			[]string{"application_name", "it's me", "TimeZone", "Europe/Berlin", "client_encoding", "latin1", "IntervalStyle", "iso_8601"},
			map[string]string{"application_name": "it's me", "TimeZone": "Europe/Berlin", "client_encoding": "LATIN1", "IntervalStyle": "iso_8601"},
		},
		"in any case":      {[]string{"timezone", "UTC", "DATESTYLE", "German"}, map[string]string{"TimeZone": "UTC", "DateStyle": "German, DMY"}},
		"from options":     {[]string{"options", "-c TimeZone=Asia/Tokyo --intervalstyle=sql_standard -capplication_name=a\\ b"}, map[string]string{"TimeZone": "Asia/Tokyo", "IntervalStyle": "sql_standard", "application_name": "a b"}},
		"own word wins":    {[]string{"options", "-c application_name=options", "application_name", "startup"}, map[string]string{"application_name": "startup"}},
		"the last wins":    {[]string{"application_name", "one", "application_name", "two"}, map[string]string{"application_name": "two"}},
		"ignored ones":     {[]string{"extra_float_digits", "3", "options", "-c extra_float_digits=1"}, nil},
		"with a backslash": {[]string{"application_name", `back\slash`}, map[string]string{"application_name": `back\slash`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := p.raw(t).send(hello(append([]string{"user", "app"}, c.params...)...))
			r.until('Z')
			for name, want := range c.want {
				if got := show(r, name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
	p = postgresWith(t, func(s *Settings, _ *Route) { s.SessionState = StatePgBouncer })
	for name, c := range map[string]struct{ params, want string }{
		"an unknown one":          {"search_path\x00secret", "unsupported startup parameter: search_path"},
		"a very long one":         {strings.Repeat("x", 5000) + "\x00y", "unsupported startup parameter: " + strings.Repeat("x", 64)},
		"an unknown one, options": {"options\x00-c work_mem=1GB", "unsupported startup parameter in options: work_mem"},
		"options of another kind": {"options\x00-d 5", `unsupported startup parameter in options: "-d", allowed are -c name=value and --name=value`},
		"options cut short":       {"options\x00-c", "unsupported startup parameter in options: -c has no setting"},
		"options without a value": {"options\x00-c geqo", `unsupported startup parameter in options: "geqo" is not name=value`},
	} {
		t.Run(name, func(t *testing.T) {
			p.raw(t).send(hello("user", "app", c.params)).refused("08P01", c.want)
		})
	}
}

// S34
func TestAParameterTheServerDoesNotTakeEndsItsClientOnly(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	bystander := p.call()
	r := p.raw(t).send(hello("user", "app", "TimeZone", "Nowhere/Land"))
	r.until('Z')
	r.send(packet('Q', "select 1\x00")).refused("22023", `invalid server parameter: invalid value for parameter "TimeZone": "Nowhere/Land"`)
	undisturbed(t, bystander)
}

func TestClientsThatShareAServerConnectionKeepTheirOwnParameters(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	clients := map[string]*caller{}
	for _, zone := range []string{"Europe/Berlin", "Asia/Tokyo", "America/New_York"} {
		clients[zone] = p.call("TimeZone", zone, "application_name", "app in "+zone)
	}
	plain := p.call()
	for range 3 {
		for zone, c := range clients {
			if got := c.must("show timezone"); got != zone {
				t.Errorf("TimeZone is %q, want %q", got, zone)
			}
			if got := c.must("show application_name"); got != "app in "+zone {
				t.Errorf("application_name is %q in %s", got, zone)
			}
		}
		if got := plain.must("show application_name"); got != "" {
			t.Errorf("a client without a name got %q", got)
		}
		if got := plain.must("show timezone"); got != "UTC" {
			t.Errorf("a client without a time zone got %q", got)
		}
	}
	// What one sets during its session is its own, too.
	clients["Asia/Tokyo"].must("set timezone to 'Asia/Seoul'")
	if got := clients["Europe/Berlin"].must("show timezone"); got != "Europe/Berlin" {
		t.Errorf("TimeZone is %q after another client has changed its own", got)
	}
	if got := clients["Asia/Tokyo"].must("show timezone"); got != "Asia/Seoul" {
		t.Errorf("TimeZone is %q, want the one set", got)
	}
	if s := p.state(); s.Servers != 1 {
		t.Errorf("%d server connections, want 1", s.Servers)
	}
}

// S35
func TestTheWelcomeTellsWhatTheServerToldWithTheClientsValuesOnTop(t *testing.T) {
	s := pgtest.Shared(t)
	direct := callAt(t, s.Addr(), "database", pgtest.Database)
	p := startProxy(t, testSettings(s.Host, s.Port, nil))
	for range 2 { // the first client, and one that needs no server connection
		c := p.call()
		want := maps.Clone(direct.params)
		if !maps.Equal(c.params, want) {
			t.Errorf("got  %v\nwant %v", c.params, want)
		}
	}
	c := p.call("application_name", "me", "TimeZone", "Asia/Tokyo")
	want := maps.Clone(direct.params)
	want["application_name"], want["TimeZone"] = "me", "Asia/Tokyo"
	if !maps.Equal(c.params, want) {
		t.Errorf("got  %v\nwant %v", c.params, want)
	}
}

func TestALongWelcomeIsReturnedToTheBuffers(t *testing.T) {
	long := strings.Repeat("x", 9000)
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Startup()
		c.AuthOK()
		c.ParameterStatus("search_path", long)
		c.KeyData(1, []byte{1, 2, 3, 4})
		c.Ready('I')
		echoQueries(c)
	}, nil)
	for range 3 {
		if c := p.call(); c.params["search_path"] != long {
			t.Error("a parameter is cut short")
		}
	}
	p.quiet(t, 3)
}

func TestServersAreLoggedIntoTheirWay(t *testing.T) {
	for _, auth := range []pgtest.Auth{pgtest.Cleartext, pgtest.MD5, pgtest.SCRAM} {
		t.Run(string(auth), func(t *testing.T) {
			t.Parallel()
			s := serverAsking(t, auth, "", "")
			p := startProxy(t, testSettings(s.Host, s.Port, nil))
			undisturbed(t, p.call())

			wrong := startProxy(t, testSettings(s.Host, s.Port, func(r *Route) { r.Password = "not " + pgtest.Password }))
			wrong.raw(t).send(hello("user", "app")).refused("28P01", `server login failed: password authentication failed for user "postgres"`)
			if log := wrong.logs.String(); strings.Contains(log, pgtest.Password) {
				t.Error("the password is in the log")
			}
		})
	}
}

func TestARouteSaysMoreToTheServer(t *testing.T) {
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		params := c.Login()
		for {
			c.Answer(params[c.Query()])
		}
	}, func(_ *Settings, r *Route) {
		r.DBName, r.User, r.Startup = "real", "forced", map[string]string{"application_name": "pooler", "DateStyle": "German"}
	})
	r := p.raw(t).login()
	for name, want := range map[string]string{"user": "forced", "database": "real", "application_name": "pooler", "DateStyle": "German"} {
		if got := r.ask(name); got != want {
			t.Errorf("the server was told %s %q, want %q", name, got, want)
		}
	}
}

func TestAServerMayListenOnAUnixSocket(t *testing.T) {
	s := pgtest.Shared(t)
	p := startProxy(t, testSettings(s.SocketDir, s.Port, nil))
	undisturbed(t, p.call())
}

// S48
func TestLimitsOnClientsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Settings, *Route)
		text string
	}{
		"max_client_conn":             {func(s *Settings, _ *Route) { s.MaxClients = 2 }, "no more connections allowed (max_client_conn)"},
		"max_db_client_connections":   {func(_ *Settings, r *Route) { r.MaxDatabaseClients = 2 }, "client connections exceeded (max_db_client_connections)"},
		"max_user_client_connections": {func(_ *Settings, r *Route) { r.MaxUserClients = 2 }, "client connections exceeded (max_user_client_connections)"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := pooledFake(t, echo, c.edit)
			a := p.raw(t).login()
			p.raw(t).login()
			p.raw(t).send(hello("user", "app", "database", "app")).refusedAfter("", "53300", c.text)
			_ = a.conn.Close()
			p.await("one has left", func(s Snapshot) bool { return s.Clients == 1 })
			p.raw(t).login()
		})
	}
}

// S37, S45
func TestTheFirstLoginWaitsForADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Stop()
	p := startProxy(t, testSettings(s.Host, s.Port, nil))
	done := make(chan string, 1)
	go func() {
		c, err := tryCall(t, p.Addr)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- c.must("select 7")
	}()
	p.await("the client waits", func(s Snapshot) bool { return s.Counters.DialFailures > 1 && s.Pools[0].Stats.Waiting == 1 })
	if err := s.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got != "7" {
		t.Errorf("got %q", got)
	}
}

// S41, M13
func TestWaitsEndWithTheNameOfTheirTimeout(t *testing.T) {
	t.Parallel()
	silent := func(c *pgtest.FakeConn) { c.AwaitEnd() }
	t.Run("query_wait_timeout during the login", func(t *testing.T) {
		p, _ := pooledFake(t, silent, func(_ *Settings, r *Route) { r.Pool.QueryWaitTimeout = time.Second })
		p.raw(t).send(hello("user", "app")).refused("53300", "query_wait_timeout: no server connection became free within 1s")
		p.quiet(t, 0)
	})
	t.Run("query_wait_timeout of a query", func(t *testing.T) {
		p, _ := pooledFake(t, echo, func(_ *Settings, r *Route) { r.Pool.Size, r.Pool.QueryWaitTimeout = 1, time.Second })
		holder := p.raw(t).login()
		holder.ask("begin")
		p.raw(t).login().send(packet('Q', "select 7\x00")).refused("53300", "query_wait_timeout: no server connection became free within 1s")
		if got := holder.ask("select 7"); got != "select 7" {
			t.Errorf("got %q", got)
		}
		if n := p.state().Counters.WaitFailures; n != 1 {
			t.Errorf("%d wait failures counted, want 1", n)
		}
	})
	t.Run("client_login_timeout with the server down", func(t *testing.T) {
		p, _ := pooledFake(t, silent, func(s *Settings, _ *Route) { s.ClientLoginTimeout = 100 * time.Millisecond })
		p.raw(t).send(hello("user", "app")).refused("08P01", "client_login_timeout (server down)")
		p.quiet(t, 0)
	})
}
