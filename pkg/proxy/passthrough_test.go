package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// passing makes a route that keeps the client's user and knows no password.
func passing(r *Route, user string) {
	r.User, r.Password = user, ""
}

// passthroughSettings are those of a passthrough pooler before the server at host:port.
func passthroughSettings(host string, port int, edit func(*Route)) *Settings {
	set := testSettings(host, port, nil)
	route := set.Route
	set.Auth = Passthrough
	set.Route = func(database, user string) (Route, bool) {
		r, ok := route(database, user)
		passing(&r, user)
		if edit != nil {
			edit(&r)
		}
		return r, ok
	}
	return set
}

// try logs in with a password and returns the client, or what it was told.
func (p *pooler) try(t *testing.T, user, password string) (*raw, string) {
	t.Helper()
	r := p.raw(t)
	r.send(hello("user", user, "database", "app"))
	if m, err := r.hear(); err != nil || m.kind != 'R' || string(m.body) != "\x00\x00\x00\x03" {
		t.Fatalf("want a request for a password in clear, got %q %q, %v", m.kind, m.body, err)
	}
	r.send(packet('p', password+"\x00"))
	for {
		m, err := r.hear()
		switch {
		case err != nil:
			t.Fatalf("the login ended without a word: %v", err)
		case m.kind == 'E':
			e := errorOf(t, m)
			_ = r.conn.Close()
			return nil, e.Code + " " + e.Message
		case m.kind == 'Z':
			return r, ""
		}
	}
}

// ask sends a query and returns its first value, or the error.
func (r *raw) ask(sql string) (value string) {
	r.t.Helper()
	r.send(packet('Q', sql+"\x00"))
	for {
		m, err := r.hear()
		switch {
		case err != nil:
			r.t.Fatalf("%s: %v", sql, err)
		case m.kind == 'D' && value == "":
			value = string(m.body[6:])
		case m.kind == 'E':
			e := errorOf(r.t, m)
			value = e.Code + " " + e.Message
			if e.Severity == "FATAL" {
				return value
			}
		case m.kind == 'Z':
			return value
		}
	}
}

func (p *pooler) admitted(t *testing.T, user, password string) *raw {
	t.Helper()
	r, why := p.try(t, user, password)
	if why != "" {
		t.Fatalf("the right password was refused: %s", why)
	}
	return r
}

func (p *pooler) denied(t *testing.T, user, password string) {
	t.Helper()
	if _, why := p.try(t, user, password); why != fmt.Sprintf("28P01 password authentication failed for user %q", user) {
		t.Fatalf("the wrong password got %q", why)
	}
}

// remembered looks at what the proxy knows of a role.
func (p *pooler) remembered(t *testing.T, user string) (cr credential, known bool) {
	t.Helper()
	done := make(chan struct{})
	if !p.loop.Post(func() {
		for key, c := range p.creds {
			if key.user == user {
				cr, known = *c, true
			}
		}
		close(done)
	}) {
		t.Fatal(ErrStopped)
	}
	<-done
	return cr, known
}

// asking are servers that ask for passwords, by how. They end with the process, as pgtest.Shared does.
var asking struct {
	sync.Mutex
	servers map[pgtest.Auth]*pgtest.Server
}

// serverAsking gives a server that asks for passwords, with a role named as the test likes.
func serverAsking(t *testing.T, auth pgtest.Auth, role, password string) *pgtest.Server {
	t.Helper()
	asking.Lock()
	defer asking.Unlock()
	s := asking.servers[auth]
	if s == nil {
		var err error
		if s, err = pgtest.Launch(context.Background(), pgtest.Options{Auth: auth}); err != nil {
			t.Fatal(err)
		}
		if asking.servers == nil {
			asking.servers = map[pgtest.Auth]*pgtest.Server{}
		}
		asking.servers[auth] = s
	}
	if role != "" {
		if err := s.Exec(context.Background(), fmt.Sprintf("drop role if exists %s; create role %s login password '%s'", role, role, password)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestPassthroughHasTheServerProveThePassword(t *testing.T) {
	for _, auth := range []pgtest.Auth{pgtest.SCRAM, pgtest.MD5, pgtest.Cleartext} {
		t.Run(string(auth), func(t *testing.T) {
			t.Parallel()
			s := serverAsking(t, auth, "app", "first-secret")
			p := startProxy(t, passthroughSettings(s.Host, s.Port, nil))

			p.denied(t, "app", "wrong-secret")
			first := p.admitted(t, "app", "first-secret")
			if got := first.ask("select current_user"); got != "app" {
				t.Fatalf("the server sees the user as %q", got)
			}
			dials := p.state().Counters.Dials
			p.admitted(t, "app", "first-secret")
			if n := p.state().Counters.Dials; n != dials {
				t.Errorf("the second client took %d logins at the server", n-dials)
			}
			p.denied(t, "app", "other-secret")

			cr, _ := p.remembered(t, "app")
			switch auth {
			case pgtest.SCRAM:
				if cr.secret.password != "" || cr.secret.keys == nil {
					t.Error("a password is kept where keys would do")
				}
			case pgtest.MD5:
				if !isMD5(cr.secret.password) {
					t.Error("a password is kept where its hash would do")
				}
			}

			// A password changed on the server works at once, and from then on no other.
			if err := s.Exec(context.Background(), "alter role app password 'second-secret'"); err != nil {
				t.Fatal(err)
			}
			second := p.admitted(t, "app", "second-secret")
			p.denied(t, "app", "first-secret")
			if got := second.ask("select current_user"); got != "app" {
				t.Fatalf("the server sees the user as %q", got)
			}
			// What is known is enough to open further server connections.
			opened := p.state().Pools[0].Stats.Opened
			for range 3 {
				if got := p.admitted(t, "app", "second-secret").ask("begin; select current_user"); got != "app" {
					t.Fatalf("got %q", got)
				}
			}
			if st := p.state().Pools[0].Stats; st.Opened == opened {
				t.Error("no further server connection was opened")
			}

			for _, secret := range []string{"first-secret", "second-secret", "wrong-secret", "other-secret"} {
				if strings.Contains(p.logs.String(), secret) {
					t.Errorf("%s is in the log", secret)
				}
			}
		})
	}
}

// vault is a fake server that asks for a password in clear, and notes when.
type vault struct {
	mu       sync.Mutex
	password string
	tries    []attempt
	// hold, if set, is waited for before an attempt with a wrong password is answered.
	hold chan struct{}
}

type attempt struct {
	at       time.Time
	user     string
	password string
	right    bool
}

func (v *vault) serve(c *pgtest.FakeConn) {
	user := c.Startup()["user"]
	password := c.AskPassword()
	v.mu.Lock()
	a := attempt{time.Now(), user, password, password == v.password}
	v.tries = append(v.tries, a)
	hold := v.hold
	v.mu.Unlock()
	if !a.right {
		if hold != nil {
			<-hold
		}
		c.Error("FATAL", "28P01", fmt.Sprintf("password authentication failed for user %q", user))
		return
	}
	c.Welcome()
	echoQueries(c)
}

func (v *vault) change(password string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.password = password
}

// seen are the attempts so far.
func (v *vault) seen() []attempt {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]attempt(nil), v.tries...)
}

func (v *vault) tried(password string) (n int) {
	for _, a := range v.seen() {
		if a.password == password {
			n++
		}
	}
	return n
}

func behindVault(t *testing.T, edit func(*Settings), route func(*Route)) (*pooler, *vault, *pgtest.Fake) {
	t.Helper()
	v := &vault{password: "right"}
	f := pgtest.NewFake(t, v.serve)
	set := passthroughSettings("127.0.0.1", f.Port(), route)
	if edit != nil {
		edit(set)
	}
	return startProxy(t, set), v, f
}

func TestWrongPasswordsReachTheServerOnceASecond(t *testing.T) {
	t.Parallel()
	p, v, _ := behindVault(t, nil, nil)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { p.denied(t, "app", fmt.Sprint("wrong", i)) })
	}
	p.await("one was tried", func(Snapshot) bool { return len(v.seen()) > 0 })
	p.denied(t, "other", "wrong other") // the interval is a user's own
	if n := len(v.seen()); n > 3 || v.tried("wrong other") != 1 {
		t.Errorf("another user's first attempt was one of %d", n)
	}
	wg.Wait()
	tries := slices.DeleteFunc(v.seen(), func(a attempt) bool { return a.user == "other" })
	if len(tries) != 3 {
		t.Fatalf("%d attempts reached the server, want 3", len(tries))
	}
	for i := range tries[1:] {
		if gap := tries[i+1].at.Sub(tries[i].at); gap < 900*time.Millisecond {
			t.Errorf("attempt %d came %v after the one before", i+2, gap)
		}
	}
}

func TestTheRightPasswordGetsInBesideAWrongOne(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"the wrong one first", "the right one first"} {
		t.Run(order, func(t *testing.T) {
			p, v, _ := behindVault(t, nil, nil)
			v.hold = make(chan struct{})
			var wg sync.WaitGroup
			if order == "the wrong one first" {
				wg.Go(func() { p.denied(t, "app", "wrong") })
				p.await("the wrong one is being tried", func(Snapshot) bool { return v.tried("wrong") == 1 })
				wg.Go(func() { p.admitted(t, "app", "right") })
				close(v.hold)
			} else {
				close(v.hold)
				wg.Go(func() { p.admitted(t, "app", "right") })
				wg.Go(func() { p.denied(t, "app", "wrong") })
			}
			wg.Wait()
			if n := v.tried("right"); n != 1 {
				t.Errorf("the right password was tried %d times", n)
			}
		})
	}
}

func TestManyFirstClientsNeedOneTrial(t *testing.T) {
	t.Parallel()
	p, v, _ := behindVault(t, nil, func(r *Route) { r.Pool.Size = 50 })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { p.admitted(t, "app", "right") })
	}
	wg.Wait()
	if n := v.tried("right"); n != 1 {
		t.Errorf("20 clients with the same password took %d logins at the server", n)
	}
}

func TestAnIdleServerConnectionProvesNoPassword(t *testing.T) {
	t.Parallel()
	t.Run("after the password was refused", func(t *testing.T) {
		p, v, _ := behindVault(t, nil, nil)
		a := p.admitted(t, "app", "right")
		a.ask("begin")
		v.change("new")
		b := p.admitted(t, "app", "right") // as far as is known it still holds
		b.send(packet('Q', "select\x00"))
		p.await("the old password is forgotten", func(Snapshot) bool { cr, _ := p.remembered(t, "app"); return !cr.proven })
		a.ask("commit")
		b.until('Z') // it waited for that
		p.await("a server connection of the old password is idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle > 0 })
		p.denied(t, "app", "wrong")
		p.denied(t, "app", "right")
		p.admitted(t, "app", "new")
	})
	t.Run("after its time to live", func(t *testing.T) {
		p, v, _ := behindVault(t, func(s *Settings) { s.PassthroughTTL = 50 * time.Millisecond }, nil)
		a := p.admitted(t, "app", "right")
		_ = a.conn.Close()
		p.await("the password is forgotten", func(Snapshot) bool { cr, _ := p.remembered(t, "app"); return !cr.proven })
		if s := p.state(); s.Pools[0].Stats.Idle != 1 {
			t.Fatalf("want an idle server connection: %+v", s.Pools[0].Stats)
		}
		p.denied(t, "app", "wrong")
		n := v.tried("right")
		p.admitted(t, "app", "right")
		if v.tried("right") == n {
			t.Error("the server was not asked again")
		}
	})
}

func TestAPasswordIsTriedAgainAfterItsTimeToLiveButServesItsClients(t *testing.T) {
	t.Parallel()
	const ttl = 50 * time.Millisecond
	p, v, _ := behindVault(t, func(s *Settings) { s.PassthroughTTL = ttl }, func(r *Route) { r.Pool.ServerIdleTimeout = 2 * ttl })
	a := p.admitted(t, "app", "right")
	p.await("its server connection is gone", func(s Snapshot) bool { return s.Servers == 0 })
	p.await("its time is over", func(Snapshot) bool {
		cr, _ := p.remembered(t, "app")
		return cr.proven && cr.until < p.loop.Clock()
	})
	// The client that is logged in can still get a server connection.
	if got := a.ask("select 7"); got != "select 7" {
		t.Fatalf("got %q", got)
	}
	p.await("its time is over again", func(Snapshot) bool { cr, _ := p.remembered(t, "app"); return cr.until < p.loop.Clock() })
	n := v.tried("right")
	p.admitted(t, "app", "right")
	if v.tried("right") == n {
		t.Error("the server was not asked again")
	}
}

func TestARefusedPasswordIsForgottenWithItsText(t *testing.T) {
	t.Parallel()
	p, v, _ := behindVault(t, nil, func(r *Route) { r.Pool.ServerIdleTimeout = 20 * time.Millisecond })
	a := p.admitted(t, "app", "right")
	v.change("new")
	p.await("no server connection is left", func(s Snapshot) bool { return s.Servers == 0 })
	if got := a.ask("select 7"); got != `28P01 server login failed: password authentication failed for user "app"` {
		t.Errorf("a client whose password was changed got %q", got)
	}
	if cr, _ := p.remembered(t, "app"); cr.proven {
		t.Error("the password is still kept")
	}
	p.admitted(t, "app", "new")
}

func TestAPasswordSetAnewIsFoundOutByItsSalt(t *testing.T) {
	t.Parallel()
	s := serverAsking(t, pgtest.SCRAM, "anew", "right")
	p := startProxy(t, passthroughSettings(s.Host, s.Port, func(r *Route) { r.Pool.ServerIdleTimeout = 20 * time.Millisecond }))
	a := p.admitted(t, "anew", "right")
	p.await("no server connection is left", func(s Snapshot) bool { return s.Servers == 0 })
	if err := s.Exec(context.Background(), "alter role anew password 'right'"); err != nil { // the same, but keys of the old salt do not fit
		t.Fatal(err)
	}
	if got := a.ask("select 7"); got != "28P01 server login failed: the password was set anew on the server" {
		t.Errorf("got %q", got)
	}
	if got := p.admitted(t, "anew", "right").ask("select 7"); got != "7" {
		t.Errorf("got %q", got)
	}
}

func TestPassthroughComparesWithAConfiguredPassword(t *testing.T) {
	t.Parallel()
	p, _, f := behindVault(t, nil, func(r *Route) { r.User, r.Password = "forced", "right" })
	p.denied(t, "app", "wrong")
	if n := f.Accepted(); n != 0 {
		t.Errorf("a wrong password took %d logins at the server", n)
	}
	undoubted(t, p.admitted(t, "app", "right"))
	undoubted(t, p.admitted(t, "app", "right"))
	p.denied(t, "app", "wrong")
}

func TestUnknownDatabasesLookLikeAWrongPassword(t *testing.T) {
	p, _, _ := behindVault(t, nil, nil)
	r := p.raw(t).send(hello("user", "app", "database", "nowhere"))
	r.until('R')
	r.send(packet('p', "right\x00")).refused("28P01", `password authentication failed for user "app"`)
}

func TestPassthroughIsOnlyOfferedToLocalClients(t *testing.T) {
	f := pgtest.NewFake(t, (&vault{password: "right"}).serve)
	set := passthroughSettings("127.0.0.1", f.Port(), nil)
	socket := filepath.Join(t.TempDir(), "socket")
	set.Listeners = []Listener{{TCP: netip.MustParseAddrPort("0.0.0.0:0"), Backlog: 10}, {Unix: socket, Mode: 0o700, Group: -1, Backlog: 10}}
	p := startProxy(t, set)
	_, port, err := net.SplitHostPort(p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	p.Addr = net.JoinHostPort("127.0.0.1", port)
	p.raw(t).send(hello("user", "app")).refused("28000", "passthrough authentication is only offered on loopback addresses and Unix sockets")
	if n := f.Accepted(); n != 0 {
		t.Errorf("the server was asked %d times", n)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &raw{t, conn}
	local.send(hello("user", "app", "database", "app"), packet('p', "right\x00")).until('Z')
	undoubted(t, local)
	_ = conn.Close()
}

func TestPassthroughWaitsForAServerThatIsAway(t *testing.T) {
	t.Parallel()
	var open atomic.Bool
	v := &vault{password: "right"}
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		if open.Load() {
			v.serve(c)
		}
	})
	p := startProxy(t, passthroughSettings("127.0.0.1", f.Port(), func(r *Route) { r.Pool.LoginRetry = 100 * time.Millisecond }))
	done := make(chan struct{})
	go func() { defer close(done); p.admitted(t, "app", "right") }()
	p.await("the client waits", func(s Snapshot) bool { return s.Counters.DialFailures > 2 && s.Pools[0].Stats.Waiting == 1 })
	open.Store(true)
	<-done
	f.Close()
	p.admitted(t, "app", "right") // a known password needs no server
}
