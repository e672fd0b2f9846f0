package proxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// Every attack of these tables ends its own connection, with one sentence, and nobody else's.

// S56, S57, CVE-2021-3935
func TestHostileFirstPackets(t *testing.T) {
	pgtest.CheckLeaks(t)
	p, _ := pooledFake(t, echo, nil)
	bystander := p.call()

	const layout = "invalid startup packet layout: "
	length := func(n int) string {
		return fmt.Sprintf("invalid length of startup packet: %d, allowed is 8 to 10000", n)
	}
	word := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	long := strings.Repeat("x", 100_000)
	cases := []struct {
		attack string
		bytes  []byte
		want   string
	}{
		{"an HTTP request", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), length(1195725856)},
		{"an SSH banner", []byte("SSH-2.0-OpenSSH_9.2\r\n"), length(1397966893)},
		{"a TLS ClientHello with no request before it", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), length(369295618)},
		{"a query before the startup", packet('Q', "select 1\x00"), length(1358954496)},
		{"length 0", word(0), length(0)},
		{"length 4", word(4), length(4)},
		{"length 7", append(word(7), 0, 3, 0), length(7)},
		{"length -1", word(0xffffffff), length(-1)},
		{"the most negative length", word(0x80000000), length(-2147483648)},
		{"the largest length", word(0x7fffffff), length(2147483647)},
		{"one byte more than allowed", word(10001), length(10001)},
		{"a user name of 100,000 bytes", hello("user", long, "database", "app"), length(100028)},
		{"a parameter of 100,000 bytes", hello("user", "app", "application_name", long), length(100036)},
		{"a user name one byte too long", hello("user", long[:129], "database", "app"), "username too long: 129 bytes, allowed are 128"},
		{"a database name one byte too long", hello("user", "app", "database", long[:65]), "database name too long: 65 bytes, allowed are 64"},
		{"protocol 2", untyped(2<<16, "app"), "old V2 protocol not supported: use a client that speaks protocol 3"},
		{"protocol 1", untyped(1<<16, "app"), "unsupported frontend protocol 1.0: server supports 3.0 to 3.2"},
		{"protocol 4", untyped(4<<16, "user\x00app\x00\x00"), "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"},
		{"protocol 0", untyped(0, "user\x00app\x00\x00"), "unsupported frontend protocol 0.0: server supports 3.0 to 3.2"},
		{"protocol 65535.65535", untyped(0xffffffff, "user\x00app\x00\x00"), "unsupported frontend protocol 65535.65535: server supports 3.0 to 3.2"},
		{"nothing behind the version", untyped(3<<16, ""), layout + "expected a terminator as the last byte"},
		{"no terminator", untyped(3<<16, "user\x00app\x00"), layout + "expected a terminator as the last byte"},
		{"no NUL at all", untyped(3<<16, "user"), layout + "expected a terminator as the last byte"},
		{"a name without a value", untyped(3<<16, "user\x00app"), layout + "a parameter has no value"},
		{"a second user behind the terminator", untyped(3<<16, "user\x00app\x00\x00user\x00root\x00\x00"), layout + "expected terminator as last byte"},
		{"a database behind the terminator", untyped(3<<16, "user\x00app\x00\x00database\x00other\x00\x00"), layout + "expected terminator as last byte"},
		{"one NUL too many", untyped(3<<16, "user\x00app\x00\x00\x00"), layout + "expected terminator as last byte"},
		{"only NULs", untyped(3<<16, strings.Repeat("\x00", 40)), layout + "expected terminator as last byte"},
		{"no user", hello("database", "app"), "no PostgreSQL user name specified in startup packet"},
		{"an empty user", hello("user", "", "database", "app"), "no PostgreSQL user name specified in startup packet"},
		{"a parameter named by the empty string", untyped(3<<16, "user\x00app\x00\x00x\x00"), layout + "expected terminator as last byte"},
		{"an SSLRequest that is too long", untyped(codeSSL, "x"), "invalid length of encryption request: 9, allowed is 8"},
		{"a GSSENCRequest that is too long", untyped(codeGSS, "\x00\x00\x00\x00"), "invalid length of encryption request: 12, allowed is 8"},
		{"a startup packet behind an SSLRequest", append(untyped(codeSSL, ""), hello("user", "app")...), "received unencrypted data after SSL request"},
		{"one byte behind a GSSENCRequest", append(untyped(codeGSS, ""), 'x'), "received unencrypted data after SSL request"},
		{"a cancel request behind an SSLRequest", append(untyped(codeSSL, ""), untyped(codeCancel, "12345678")...), "received unencrypted data after SSL request"},
		{"a cancel request without a key", untyped(codeCancel, ""), "bad cancel request: length is 8, allowed is 16 to 268"},
		{"a cancel request that is too short", untyped(codeCancel, "1234567"), "bad cancel request: length is 15, allowed is 16 to 268"},
		{"a cancel request that is too long", untyped(codeCancel, long[:261]), "bad cancel request: length is 269, allowed is 16 to 268"},
	}
	for _, c := range cases {
		t.Run(c.attack, func(t *testing.T) {
			r := p.raw(t).send(c.bytes)
			r.refused("08P01", c.want)
			undisturbed(t, bystander)
			// In single bytes, as far as it is listened to.
			p.raw(t).send(bytewise(c.bytes[:min(len(c.bytes), 300)])...).conn.Close()
		})
	}
	p.quiet(t, 1)
	if strings.Contains(p.logs.String(), long[:1000]) {
		t.Error("a hostile name fills the log")
	}
}

// S56
func TestRequestsForEncryptionEndSomewhere(t *testing.T) {
	p, _ := pooledFake(t, echo, nil)
	r := p.raw(t)
	for _, code := range []uint32{codeSSL, codeGSS} {
		if b := r.send(untyped(code, "")).reply(); b != 'N' {
			t.Fatalf("a request for encryption was answered by %q", b)
		}
	}
	r.send(untyped(codeSSL, "")).refused("08P01", "too many requests for encryption")
	p.quiet(t, 0)
}

// S27, M24
func TestCancelRequestsWithWrongKeysAreDroppedInSilence(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := pooledPostgres(t, nil)
	holder, victim := p.call(), p.call()
	holder.must("begin; select pg_advisory_xact_lock(4711)")
	victim.send(&pgproto3.Query{String: "select pg_advisory_xact_lock(4711), 7"})
	p.await("the victim's query runs", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Active == 2 })

	pid := binary.BigEndian.AppendUint32(nil, victim.pid)
	wrong := append([]byte(nil), victim.key...)
	wrong[3]++
	for name, body := range map[string]string{
		"the pid is right, the key wrong":          string(pid) + string(wrong),
		"the key is right, the pid wrong":          "\x00\x00\x00\x00" + string(victim.key),
		"all zero":                                 strings.Repeat("\x00", 8),
		"the right key and a byte more":            string(pid) + string(victim.key) + "x",
		"the right key and 252 bytes more":         string(pid) + string(victim.key) + strings.Repeat("x", 252),
		"the key of protocol 3.2, nobody has one":  string(pid) + strings.Repeat("k", 32),
		"pid and key swapped":                      string(victim.key) + string(pid),
		"the longest key, starting with the right": string(pid) + string(victim.key) + strings.Repeat("\x00", 252),
	} {
		t.Run(name, func(t *testing.T) { p.raw(t).send(untyped(codeCancel, body)).dropped() })
	}
	holder.must("commit")
	if r := victim.reply(); r.err != nil {
		t.Fatalf("a stranger canceled the query: %s", r.err.Message)
	}
	if n := p.state().Counters.Cancels; n != 0 {
		t.Errorf("%d cancel requests reached the server", n)
	}
}

// plainProxy asks every client for the password of the user list, "secret".
func plainProxy(t *testing.T, auth AuthType, edit func(*Settings)) *pooler {
	t.Helper()
	p, _ := pooledFake(t, echo, func(s *Settings, _ *Route) {
		s.Auth, s.Users = auth, map[string]string{"app": "secret", "postgres": "secret"}
		if edit != nil {
			edit(s)
		}
	})
	return p
}

func TestHostilePasswordMessages(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := plainProxy(t, Plain, nil)
	bystander := p.raw(t).send(hello("user", "app"), packet('p', "secret\x00"))
	bystander.until('Z')

	const invalid = "invalid password packet"
	length := func(kind string, n int) string {
		return fmt.Sprintf("bad packet header: message '%s' announces length %d, allowed is 4 to 4096", kind, n)
	}
	cases := []struct {
		attack string
		bytes  []byte
		want   string
	}{
		{"a query instead", packet('Q', "select 1\x00"), "expected password response, got message type 'Q'"},
		{"a Sync instead", packet('S', ""), "expected password response, got message type 'S'"},
		{"another startup packet", hello("user", "app", "database", strings.Repeat("x", 3000)), "bad packet header: message 0x00 announces length 775168, allowed is 4 to 4096"},
		{"an SSLRequest", untyped(codeSSL, ""), "expected password response, got message type 0x00"},
		{"a type that does not exist", packet(0xff, "x"), "expected password response, got message type 0xff"},
		{"length 0", partial('p', 0, ""), length("p", 0)},
		{"length 3", partial('p', 3, ""), length("p", 3)},
		{"length -1", partial('p', -1, ""), length("p", -1)},
		{"the most negative length", partial('p', -1<<31, "secret\x00"), length("p", -1<<31)},
		{"the largest length", partial('p', 1<<31-1, "secret\x00"), length("p", 1<<31-1)},
		{"one byte more than allowed", partial('p', 4097, "secret\x00"), length("p", 4097)},
		{"a password of 100,000 bytes", packet('p', strings.Repeat("x", 100_000)+"\x00"), length("p", 100_005)},
		{"no bytes", packet('p', ""), invalid},
		{"no NUL at the end", packet('p', "secret"), invalid},
		{"a NUL in the middle", packet('p', "secret\x00x\x00"), invalid},
		{"two NULs at the end", packet('p', "secret\x00\x00"), invalid},
	}
	for _, c := range cases {
		t.Run(c.attack, func(t *testing.T) {
			r := p.raw(t).send(hello("user", "app"))
			r.until('R')
			r.send(c.bytes).refused("08P01", c.want)
			bystander.send(packet('Q', "select 7\x00")).until('Z')
		})
	}
	p.raw(t).send(hello("user", "app"), packet('X', "")).ending() // says goodbye: no error
	p.quiet(t, 1)
	if strings.Contains(p.logs.String(), "secret") {
		t.Error("a password is in the log")
	}
}

// M21, CVE-2026-6664
func TestHostileSCRAMMessages(t *testing.T) {
	pgtest.CheckLeaks(t)
	p := plainProxy(t, ScramSHA256, nil)

	// initial is a SASLInitialResponse whose inner length is true.
	initial := func(mechanism, data string) []byte {
		return packet('p', mechanism+"\x00"+string(binary.BigEndian.AppendUint32(nil, uint32(len(data))))+data)
	}
	const mech = "SCRAM-SHA-256"
	const first = "n,,n=,r=abcdefghijklmnop"
	const malformedFirst = "malformed SCRAM client-first-message: "
	const malformedFinal = "malformed SCRAM client-final-message: "
	zeros := strings.Repeat("A", 43) + "="
	cases := []struct {
		attack string
		first  []byte
		final  func(nonce string) []byte
		code   string
		want   string
	}{
		{attack: "no mechanism", first: packet('p', ""), want: "malformed SCRAM message: SASLInitialResponse is cut short"},
		{attack: "a mechanism without its end", first: packet('p', mech), want: "malformed SCRAM message: SASLInitialResponse is cut short"},
		{attack: "no length", first: packet('p', mech+"\x00"), want: "malformed SCRAM message: SASLInitialResponse is cut short"},
		{attack: "half a length", first: packet('p', mech+"\x00\x00\x00"), want: "malformed SCRAM message: SASLInitialResponse is cut short"},
		{attack: "a length of -1", first: packet('p', mech+"\x00\xff\xff\xff\xff"), want: "malformed SCRAM message: length is -1, 0 bytes follow"},
		{attack: "a length that overflows", first: packet('p', mech+"\x00\x7f\xff\xff\xff"+first), want: "malformed SCRAM message: length is 2147483647, 24 bytes follow"},
		{attack: "a length one too large", first: packet('p', mech+"\x00\x00\x00\x00\x19"+first), want: "malformed SCRAM message: length is 25, 24 bytes follow"},
		{attack: "a length one too small", first: packet('p', mech+"\x00\x00\x00\x00\x17"+first), want: "malformed SCRAM message: length is 23, 24 bytes follow"},
		{attack: "channel binding nobody offered", first: initial("SCRAM-SHA-256-PLUS", first), want: `client selected SASL mechanism "SCRAM-SHA-256-PLUS", offered is SCRAM-SHA-256`},
		{attack: "a mechanism of 4,000 bytes", first: initial(strings.Repeat("M", 4000), ""), want: `client selected SASL mechanism "` + strings.Repeat("M", 64) + `", offered is SCRAM-SHA-256`},
		{attack: "a nonce of 300 bytes", first: initial(mech, "n,,n=,r="+strings.Repeat("x", 300)), want: malformedFirst + "the nonce has 300 bytes, at most 256 are allowed"},
		{attack: "a nonce of 5,000 bytes", first: initial(mech, "n,,n=,r="+strings.Repeat("x", 5000)), want: "bad packet header: message 'p' announces length 5030, allowed is 4 to 4096"},
		{attack: "no nonce", first: initial(mech, "n,,n="), want: malformedFirst + "it ends too early"},
		{attack: "no header", first: initial(mech, "r=abc"), want: malformedFirst + "it must begin with the channel binding flag n or y and a comma"},
		{attack: "an identity of another", first: initial(mech, "n,a=postgres,n=,r=abc"), want: malformedFirst + "an authorization identity is not supported"},
		{attack: "a mandatory extension", first: initial(mech, "n,,m=x,n=,r=abc"), want: malformedFirst + "the mandatory extension m= is not supported"},
		{attack: "a query instead", first: packet('Q', "select 1\x00"), want: "expected password response, got message type 'Q'"},
		{attack: "the first message again", first: initial(mech, first), final: func(string) []byte { return initial(mech, first) },
			want: malformedFinal + "it contains a NUL byte"},
		{attack: "an empty final message", first: initial(mech, first), final: func(string) []byte { return packet('p', "") },
			want: malformedFinal + "attribute p= is missing"},
		{attack: "no proof", first: initial(mech, first), final: func(n string) []byte { return packet('p', "c=biws,r="+n) },
			want: malformedFinal + "attribute p= is missing"},
		{attack: "a proof of 3 bytes", first: initial(mech, first), final: func(n string) []byte { return packet('p', "c=biws,r="+n+",p=AAAA") },
			want: malformedFinal + "the proof must be base64 of 32 bytes and come last"},
		{attack: "a proof of 4,000 characters", first: initial(mech, first),
			final: func(n string) []byte { return packet('p', "c=biws,r="+n+",p="+strings.Repeat("AAAA", 1000)) },
			want:  malformedFinal + "the proof must be base64 of 32 bytes and come last"},
		{attack: "no nonce in the final message", first: initial(mech, first), final: func(string) []byte { return packet('p', "c=biws,p="+zeros) },
			want: malformedFinal + "it ends too early"},
		{attack: "the client's own nonce", first: initial(mech, first), final: func(string) []byte { return packet('p', "c=biws,r=abcdefghijklmnop,p="+zeros) },
			want: malformedFinal + "its nonce is not the one agreed on"},
		{attack: "channel binding sneaked in", first: initial(mech, first), final: func(n string) []byte { return packet('p', "c=eSws,r="+n+",p="+zeros) },
			want: malformedFinal + "its channel binding differs from the client-first-message"},
		{attack: "a proof of nothing", first: initial(mech, first), final: func(n string) []byte { return packet('p', "c=biws,r="+n+",p="+zeros) },
			code: "28P01", want: `password authentication failed for user "app"`},
	}
	for _, c := range cases {
		t.Run(c.attack, func(t *testing.T) {
			r := p.raw(t).send(hello("user", "app"))
			r.until('R')
			r.send(c.first)
			if c.final != nil {
				challenge := string(r.until('R').body[4:])
				nonce, _, _ := strings.Cut(strings.TrimPrefix(challenge, "r="), ",")
				r.send(c.final(nonce))
			}
			if c.code == "" {
				c.code = "08P01"
			}
			r.refused(c.code, c.want)
		})
	}
	p.quiet(t, 0)
	if n := p.state().Counters.LoginFailures; n != uint64(len(cases)) {
		t.Errorf("%d login failures counted, want %d", n, len(cases))
	}
}

func TestAnEndlessFarewellIsCutOff(t *testing.T) {
	p, _ := pooledFake(t, echo, nil)
	r := p.raw(t).send([]byte("GET / HTTP/1.1\r\n"))
	// It goes on talking although it has been refused.
	junk := make([]byte, 64<<10)
	for {
		if _, err := r.conn.Write(junk); err != nil {
			break
		}
	}
	p.quiet(t, 0)
	_, _ = io.Copy(io.Discard, r.conn)
}

func TestSlowLoginsEndAtTheLoginTimeout(t *testing.T) {
	pgtest.CheckLeaks(t)
	const limit = 300 * time.Millisecond
	for name, auth := range map[string]AuthType{"trust": Trust, "plain": Plain, "scram": ScramSHA256} {
		t.Run(name, func(t *testing.T) {
			p := plainProxy(t, auth, func(s *Settings) { s.ClientLoginTimeout = limit })
			stop := make(chan struct{})
			done := make(chan struct{})
			var slow []*raw
			start := hello("user", "app", "application_name", strings.Repeat("x", 5000))
			for range 20 {
				slow = append(slow, p.raw(t))
			}
			go func() { // one byte at a time, to all of them in turn
				defer close(done)
				for i := 0; ; i++ {
					for _, r := range slow {
						_, _ = r.conn.Write(start[i%len(start) : i%len(start)+1])
					}
					select {
					case <-stop:
						return
					case <-time.After(10 * time.Millisecond):
					}
				}
			}()
			began := time.Now()
			for _, r := range slow {
				r.refused("08P01", "client_login_timeout")
			}
			if took := time.Since(began); took < limit/2 || took > 10*time.Second {
				t.Errorf("slow logins ended after %v, the limit is %v", took, limit)
			}
			close(stop)
			<-done
			p.quiet(t, 0)
		})
	}
}

func TestPasswordsThatNeverEndRunIntoTheLoginTimeout(t *testing.T) {
	for name, start := range map[string][]byte{
		"announced and not sent": partial('p', 4000, "sec"),
		"half a header":          []byte("p\x00"),
		"nothing":                nil,
	} {
		t.Run(name, func(t *testing.T) {
			p := plainProxy(t, Plain, func(s *Settings) { s.ClientLoginTimeout = 200 * time.Millisecond })
			r := p.raw(t).send(hello("user", "app"))
			r.until('R')
			r.send(start).refused("08P01", "client_login_timeout")
			p.quiet(t, 0)
		})
	}
}

// S48
func TestAFloodOfHalfOpenLoginsLeavesRoomForOthers(t *testing.T) {
	pgtest.CheckLeaks(t)
	p, _ := pooledFake(t, echo, func(s *Settings, _ *Route) { s.MaxClients = 3 })
	before := heap()
	openings := [][]byte{nil, {0}, hello("user", "app")[:15], untyped(codeSSL, "")[:7]}
	const n = 1000
	flood := make([]net.Conn, n)
	for i := range flood {
		conn, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		flood[i] = conn
		if _, err := conn.Write(openings[i%len(openings)]); err != nil {
			t.Fatal(err)
		}
	}
	p.await("all are connected", func(s Snapshot) bool { return s.Clients == n })
	// They do not count in max_client_conn.
	c := p.call()
	undisturbed(t, c)
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("%d half-open logins take %d KiB", n, grown>>10)
	}
	for _, conn := range flood {
		_ = conn.Close()
	}
	p.quiet(t, 1)
}

func TestAClientThatLeavesDuringItsLoginGivesItsPlaceBack(t *testing.T) {
	pgtest.CheckLeaks(t)
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) { c.AwaitEnd() }, func(s *Settings, _ *Route) { s.MaxClients = 1 })
	for range 3 {
		r := p.raw(t).send(hello("user", "app"))
		p.await("it waits for a server", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Waiting == 1 })
		_ = r.conn.Close()
		p.await("it is gone", func(s Snapshot) bool { return s.Clients == 0 && s.Pools[0].Stats.Clients == 0 })
	}
}

func TestMadeUpNamesDoNotPileUp(t *testing.T) {
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		if user := c.Startup()["user"]; user != "app" {
			c.Error("FATAL", "28000", fmt.Sprintf("role %q does not exist", user))
			return
		}
		c.Welcome()
		echoQueries(c)
	}, func(_ *Settings, r *Route) { r.Pool.LoginRetry = 100 * time.Millisecond })
	route := p.set.Route
	named := *p.set
	named.Route = func(database, user string) (Route, bool) {
		r, ok := route(database, user)
		r.User = user
		return r, ok
	}
	p.reloaded(t, &named)
	a := p.raw(t).login()
	for i := range manyPools + 50 {
		user := fmt.Sprint("user", i)
		p.raw(t).send(hello("user", user, "database", "app")).refused("28000", fmt.Sprintf("server login failed: role %q does not exist", user))
	}
	if n := len(p.state().Pools); n > manyPools {
		t.Errorf("%d pools are remembered", n)
	}
	if got := a.ask("select 7"); got != "select 7" {
		t.Errorf("got %q", got)
	}
}

func TestNamesCannotForgeLogLines(t *testing.T) {
	p := plainProxy(t, Plain, func(s *Settings) { s.LogPoolerErrors = true })
	const forged = "x\nlevel=ERROR msg=forged"
	p.raw(t).send(hello("user", forged, "database", forged), packet('p', "wrong\x00")).
		refusedAfter("R", "28P01", fmt.Sprintf("password authentication failed for user \"%s\"", forged))
	p.raw(t).send(hello("user", "app", forged, "x")).refused("08P01", "unsupported startup parameter: "+forged)
	for line := range strings.Lines(p.logs.String()) {
		if strings.HasPrefix(line, "level=") {
			t.Errorf("the log has the line %s", line)
		}
	}
}
