package proxy

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// echoing is a fake server that answers queries with their own text.
func echoing(t *testing.T) *pgtest.Fake {
	t.Helper()
	return pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		echoQueries(c)
	})
}

// severalHosts sends every database to these ports.
func severalHosts(edit func(*Settings, *Route), ports ...int) *Settings {
	set := testSettings("", 0, func(r *Route) {
		r.Hosts = nil
		for range ports {
			r.Hosts = append(r.Hosts, "127.0.0.1")
		}
		r.Ports = ports
		if edit != nil {
			edit(&Settings{}, r)
		}
	})
	if edit != nil {
		edit(set, &Route{})
	}
	return set
}

// closedPort is one that nobody listens on.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// holding logs in and keeps n server connections in use.
func (p *pooler) holding(n int) []*caller {
	p.t.Helper()
	var all []*caller
	for range n {
		c := p.call()
		c.must("begin")
		all = append(all, c)
	}
	return all
}

func TestConnectionsGoToEachHostInTurn(t *testing.T) {
	a, b, c := echoing(t), echoing(t), echoing(t)
	p := startProxy(t, severalHosts(func(_ *Settings, r *Route) { r.Pool.Size = 6 }, a.Port(), b.Port(), c.Port()))
	p.holding(6)
	if a.Accepted() != 2 || b.Accepted() != 2 || c.Accepted() != 2 {
		t.Errorf("got %d, %d and %d, want 2 of each", a.Accepted(), b.Accepted(), c.Accepted())
	}
}

func TestConnectionsStayWithTheHostThatWorked(t *testing.T) {
	a, b := echoing(t), echoing(t)
	p := startProxy(t, severalHosts(func(_ *Settings, r *Route) { r.Balance, r.Pool.Size = StickToOne, 6 }, closedPort(t), a.Port(), b.Port()))
	held := p.holding(3)
	if a.Accepted() != 3 || b.Accepted() != 0 {
		t.Fatalf("got %d and %d, want 3 and 0", a.Accepted(), b.Accepted())
	}
	a.Close()
	for _, c := range held {
		c.fatal()
	}
	p.holding(3)
	if b.Accepted() != 3 {
		t.Errorf("got %d, want 3 after the first host has gone", b.Accepted())
	}
}

func TestAHostThatRefusesIsSkipped(t *testing.T) {
	a := echoing(t)
	down := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.Startup(); c.Error("FATAL", "57P03", "the database system is starting up") })
	said := make(chan Backpressure, 100)
	p := startProxy(t, severalHosts(func(s *Settings, r *Route) {
		s.OnBackpressure = func(b Backpressure) { said <- b }
		r.Pool.Size = 6
	}, closedPort(t), a.Port(), down.Port()))
	p.holding(6)
	s := p.state()
	if s.Counters.DialFailures != 0 || s.Counters.Dials != 6 {
		t.Errorf("%d of %d attempts failed, want none of 6", s.Counters.DialFailures, s.Counters.Dials)
	}
	if len(said) == 0 {
		t.Fatal("nobody was told that one host is starting up")
	}
	if b := <-said; b.Addr != down.Addr() || b.SQLSTATE != "57P03" || !strings.Contains(b.Server, "127.0.0.1:") {
		t.Errorf("told %+v", b)
	}
}

func TestARefusalForGoodEndsTheAttempt(t *testing.T) {
	a := echoing(t)
	wrong := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.Startup(); c.Error("FATAL", "28P01", "no") })
	later := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.Startup(); c.Error("FATAL", "57P03", "later") })
	p := startProxy(t, severalHosts(func(_ *Settings, r *Route) { r.Balance = StickToOne }, later.Port(), wrong.Port(), a.Port()))
	p.raw(t).send(hello("user", "app", "database", "app")).refused("28P01", "server login failed: no")
	if n := a.Accepted(); n != 0 {
		t.Errorf("%d connections to the next host, want none", n)
	}
}

func TestAddressesAreWrittenAsTheyAreDialed(t *testing.T) {
	for host, want := range map[string]string{
		"10.0.0.1":    "tcp 10.0.0.1:5432",
		"::1":         "tcp [::1]:5432",
		"fe80::1%lo":  "tcp [fe80::1%lo]:5432",
		"/run/pg":     "unix /run/pg/.s.PGSQL.5432",
		"db.internal": "tcp db.internal:5432",
	} {
		ip, isName := literal(host)
		network, addr := candidate{host: host, port: 5432, ip: ip}.address()
		if got := network + " " + addr; got != want || isName != (host == "db.internal") {
			t.Errorf("%s: got %s, a name: %v", host, got, isName)
		}
	}
	r := Route{Hosts: []string{"a", "::1"}, Port: 1}
	if got := r.server(); got != "a,::1:1" {
		t.Errorf("got %s", got)
	}
	if r.Ports = []int{2, 3}; r.server() != "a:2,::1:3" {
		t.Errorf("got %s", r.server())
	}
}

// blackHole is a port whose connection attempts are never answered: the queue of its listener is full.
func blackHole(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}
	for range 10 {
		c, err := net.DialTimeout("tcp", addr.String(), 200*time.Millisecond)
		if err != nil {
			return addr.Port
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("a full queue still takes connections")
	return 0
}

func TestAHostInABlackHoleCostsItsShareOfTheTime(t *testing.T) {
	silent := pgtest.NewFake(t, func(c *pgtest.FakeConn) { c.AwaitEnd() })
	a := echoing(t)
	p := startProxy(t, severalHosts(func(s *Settings, r *Route) {
		s.ServerConnectTimeout = 6 * time.Second
		r.Balance, r.Pool.QueryWaitTimeout = StickToOne, 20*time.Second
	}, blackHole(t), silent.Port(), a.Port()))
	began := time.Now()
	undisturbed(t, p.call())
	if took := time.Since(began); took < 3*time.Second || took > 5900*time.Millisecond {
		t.Errorf("it took %v, want about 4 s: a third, and half of the rest", took)
	}
	if n := p.state().Counters.DialFailures; n != 0 {
		t.Errorf("%d attempts failed, want none", n)
	}
	began = time.Now()
	p.holding(2)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v although one host is known to work", took)
	}
}

func TestTheLastWordNamesEveryHost(t *testing.T) {
	first, second := closedPort(t), closedPort(t)
	p := startProxy(t, severalHosts(func(_ *Settings, r *Route) { r.Pool.QueryWaitTimeout = 300 * time.Millisecond }, first, second))
	p.raw(t).send(hello("user", "app", "database", "app")).refused("53300", "query_wait_timeout: no server connection became free within 300ms")
	line := lineWith(p.logs.String(), "cannot connect to server", "none of 2 addresses would do")
	for _, port := range []int{first, second} {
		if at := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String(); !strings.Contains(line, at+": connect failed") {
			t.Errorf("the log does not tell of %s: %s", at, line)
		}
	}
	if got := p.state().DialFailures["none"]; got == 0 {
		t.Error("no failure without SQLSTATE is counted")
	}
}

func TestAPortThatChangesInTheListMovesConnections(t *testing.T) {
	a, b := echoing(t), echoing(t)
	set := severalHosts(nil, a.Port())
	p := startProxy(t, set)
	c := p.call()
	undisturbed(t, c)
	p.Reload(severalHosts(nil, b.Port()))
	a.AwaitOpen(t, 0)
	undisturbed(t, c)
	if b.Accepted() != 1 {
		t.Errorf("%d connections to the new port, want 1", b.Accepted())
	}
}

func TestAnotherWayToConnectRecyclesConnections(t *testing.T) {
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		reporting(c, "off", "off")
		echoQueries(c)
	})
	for what, edit := range map[string]func(*Settings, *Route){
		"connect_query":        func(_ *Settings, r *Route) { r.ConnectQuery = "select 1" },
		"load_balance_hosts":   func(_ *Settings, r *Route) { r.Balance = StickToOne },
		"target_session_attrs": func(_ *Settings, r *Route) { r.Target = Primary },
	} {
		p := startProxy(t, severalHosts(nil, f.Port()))
		c := p.call()
		undisturbed(t, c)
		before := f.Accepted()
		p.Reload(severalHosts(edit, f.Port()))
		undisturbed(t, c)
		if n := f.Accepted() - before; n != 1 {
			t.Errorf("%s: %d new connections, want 1", what, n)
		}
	}
}

func TestSocketOptionsAreSetOnBothSides(t *testing.T) {
	f := echoing(t)
	ka := KeepAlive{On: true, Idle: 33 * time.Second, Interval: 7 * time.Second, Count: 5, UserTimeout: 4321 * time.Millisecond, SocketBuffer: 40000}
	for _, c := range []struct {
		ka      KeepAlive
		options map[[2]int]int
	}{
		{ka, map[[2]int]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: 33, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: 7,
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}: 5, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 4321,
			{unix.SOL_SOCKET, unix.SO_SNDBUF}: 80000, {unix.SOL_SOCKET, unix.SO_RCVBUF}: 80000, // the kernel doubles
		}},
		// What nobody set is the system's own.
		{KeepAlive{On: true}, map[[2]int]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 0,
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: systemOption(t, unix.TCP_KEEPIDLE), {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: systemOption(t, unix.TCP_KEEPINTVL),
		}},
		{KeepAlive{}, map[[2]int]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 0}},
	} {
		set := testSettings("127.0.0.1", f.Port(), nil)
		set.KeepAlive = c.ka
		p := startProxy(t, set)
		undisturbed(t, p.call())
		done := make(chan struct{})
		p.loop.Post(func() {
			defer close(done)
			fds := map[string]int{"client": p.clients[0].conn.FD()}
			for s := range p.servers {
				fds["server"] = s.conn.FD()
			}
			for side, fd := range fds {
				for option, want := range c.options {
					got, err := unix.GetsockoptInt(fd, option[0], option[1])
					if err != nil || got != want {
						t.Errorf("%s: option %v is %d, %v; want %d", side, option, got, err, want)
					}
				}
			}
		})
		<-done
	}
}

func systemOption(t *testing.T, option int) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	v, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, option)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
