package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

const dbName = "db.example.test"

// book is a name service whose one answer a test changes.
type book struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	asked int
	hold  chan struct{} // look-ups wait for its end
}

func (b *book) set(err error, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.addrs = err, nil
	for _, a := range addrs {
		b.addrs = append(b.addrs, netip.MustParseAddr(a))
	}
}

func (b *book) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func (b *book) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	b.mu.Lock()
	b.asked++
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if host != dbName {
		return nil, errors.New("asked for " + host)
	}
	return b.addrs, b.err
}

var (
	noSuchHost = &net.DNSError{Err: "no such host", Name: dbName, IsNotFound: true}
	dnsDown    = &net.DNSError{Err: "server misbehaving", Name: dbName, IsTemporary: true}
)

// twoAddresses are echoing servers on the same port of two addresses.
func twoAddresses(t *testing.T) (one, two *pgtest.Fake) {
	t.Helper()
	return twoAddressesServing(t, func(c *pgtest.FakeConn) {
		c.Login()
		echoQueries(c)
	})
}

func twoAddressesServing(t *testing.T, serve func(*pgtest.FakeConn)) (one, two *pgtest.Fake) {
	t.Helper()
	for range 20 { // the port may be taken at the second address
		one = pgtest.NewFake(t, serve)
		addr := net.JoinHostPort("127.0.0.2", strconv.Itoa(one.Port()))
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return one, pgtest.NewFakeAt(t, addr, func(c *pgtest.FakeConn) {
				c.Login()
				echoQueries(c)
			})
		}
	}
	t.Fatal("no port is free at both addresses")
	return nil, nil
}

func byName(b *book, port int, edit func(*Settings, *Route)) *Settings {
	set := testSettings(dbName, port, func(r *Route) {
		r.Pool.LoginRetry = 200 * time.Millisecond
		if edit != nil {
			edit(&Settings{}, r)
		}
	})
	set.DNS = DNS{MaxTTL: time.Hour, NegativeTTL: time.Millisecond, Resolve: b.lookup}
	if edit != nil {
		edit(set, &Route{})
	}
	return set
}

func TestTheAddressesOfANameAreTakenInTurn(t *testing.T) {
	one, two := twoAddresses(t)
	b := &book{}
	b.set(nil, "127.0.0.2", "::ffff:127.0.0.1", "127.0.0.2")
	p := startProxy(t, byName(b, one.Port(), func(_ *Settings, r *Route) { r.Pool.Size = 4 }))
	p.holding(4)
	if one.Accepted() != 2 || two.Accepted() != 2 {
		t.Errorf("got %d and %d, want 2 of each", one.Accepted(), two.Accepted())
	}
	if n := b.count(); n != 1 {
		t.Errorf("the name was looked up %d times within its TTL, want once", n)
	}
}

func TestConnectionsLeaveAddressesThatANameHasLost(t *testing.T) {
	for name, edit := range map[string]func(*Settings, *Route){
		"noticed when one is opened": func(s *Settings, _ *Route) { s.DNS.MaxTTL = 0 },
		"noticed by the check":       func(s *Settings, _ *Route) { s.DNS.CheckPeriod = 10 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			one, two := twoAddresses(t)
			b := &book{}
			b.set(nil, "127.0.0.1")
			p := startProxy(t, byName(b, one.Port(), edit))
			busy, idle := p.call(), p.call()
			busy.must("begin")
			undisturbed(t, idle)
			if one.Accepted() != 2 {
				t.Fatalf("%d connections to the first address, want 2", one.Accepted())
			}
			b.set(nil, "127.0.0.2")
			if p.set.DNS.CheckPeriod == 0 {
				idle.must("begin")
				p.call().must("begin") // a third one, which has the name looked up
				idle.must("commit")
			}
			one.AwaitOpen(t, 1) // the busy one stays
			undisturbed(t, busy)
			if n := one.Open(); n != 1 {
				t.Errorf("%d connections to the first address in a transaction, want 1", n)
			}
			busy.must("commit")
			one.AwaitOpen(t, 0)
			for range 3 {
				undisturbed(t, busy)
			}
			if one.Accepted() != 2 || two.Accepted() == 0 {
				t.Errorf("%d connections to the first and %d to the second address", one.Accepted(), two.Accepted())
			}
			if !strings.Contains(p.logs.String(), "server address changed") {
				t.Error("the log does not say why")
			}
		})
	}
}

func TestALoginUnderWayToAnAddressThatIsLostServesNobody(t *testing.T) {
	welcome := make(chan struct{})
	one, two := twoAddressesServing(t, func(c *pgtest.FakeConn) {
		c.Startup()
		if c.Number == 2 {
			<-welcome
		}
		c.Welcome()
		echoQueries(c)
	})
	b := &book{}
	b.set(nil, "127.0.0.1")
	p := startProxy(t, byName(b, one.Port(), func(s *Settings, _ *Route) { s.DNS.CheckPeriod = 10 * time.Millisecond }))
	busy := p.holding(1)[0]
	c := p.call()
	c.send(&pgproto3.Query{String: "select 7"})
	one.AwaitAccepted(t, 2)
	b.set(nil, "127.0.0.2")
	asked := b.count()
	p.await("the check", func(Snapshot) bool { return b.count() >= asked+2 })
	busy.must("commit")
	one.AwaitOpen(t, 1)
	close(welcome)
	if r := c.reply(); r.value(0) != "select 7" {
		t.Errorf("got %+v", r)
	}
	one.AwaitOpen(t, 0)
	if two.Accepted() == 0 {
		t.Error("nobody connected to the new address")
	}
}

func TestWithoutNameServiceTheLastAddressesStayInUse(t *testing.T) {
	f := echoing(t)
	b := &book{}
	b.set(dnsDown)
	p := startProxy(t, byName(b, f.Port(), func(s *Settings, _ *Route) { s.DNS.MaxTTL = 0 }))
	r := p.raw(t).send(hello("user", "app", "database", "app"))
	p.await("failed look-ups", func(Snapshot) bool { return b.count() >= 2 })
	b.set(nil, "127.0.0.1")
	r.until('Z') // who waits is served when names are known again
	b.set(dnsDown)
	p.holding(3)
	if n := f.Accepted(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	log := p.logs.String()
	for _, want := range []string{"server DNS lookup failed: db.example.test", "DNS lookup failed", "known_addresses=1"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

func TestANameThatIsGoneGetsNoNewConnections(t *testing.T) {
	f := echoing(t)
	b := &book{}
	b.set(nil, "127.0.0.1")
	p := startProxy(t, byName(b, f.Port(), func(s *Settings, r *Route) {
		s.DNS.MaxTTL, s.DNS.NegativeTTL = 0, time.Hour
		r.Pool.QueryWaitTimeout = 500 * time.Millisecond
	}))
	first := p.holding(1)[0]
	b.set(noSuchHost)
	asked := b.count()
	c := p.call()
	if e := c.ask("select 7").err; e == nil || !strings.Contains(e.Message, "query_wait_timeout") {
		t.Errorf("got %+v, want a query_wait_timeout", e)
	}
	undisturbed(t, first) // what is connected stays
	if n := b.count() - asked; n != 1 {
		t.Errorf("the name was looked up %d times within dns_nxdomain_ttl, want once", n)
	}
	if n := f.Accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestASlowLookupHoldsUpNobodyElse(t *testing.T) {
	f := echoing(t)
	b := &book{hold: make(chan struct{})}
	b.set(nil, "127.0.0.1")
	p := startProxy(t, byName(b, f.Port(), func(s *Settings, r *Route) {
		if r.Database == "direct" {
			r.Hosts = []string{"127.0.0.1"}
		}
	}))
	var waiting []*raw
	for range 3 {
		waiting = append(waiting, p.raw(t).send(hello("user", "app", "database", "named")))
	}
	p.await("the look-up", func(Snapshot) bool { return b.count() == 1 })
	for range 3 {
		undisturbed(t, p.call("database", "direct"))
	}
	close(b.hold)
	for _, r := range waiting {
		r.until('Z')
	}
	if n := b.count(); n != 1 {
		t.Errorf("the name was looked up %d times, want once for all who wait", n)
	}
}

func TestStopEndsALookup(t *testing.T) {
	pgtest.CheckLeaks(t)
	f := echoing(t)
	b := &book{hold: make(chan struct{})}
	p := startProxy(t, byName(b, f.Port(), nil))
	p.raw(t).send(hello("user", "app", "database", "app"))
	p.await("the look-up", func(Snapshot) bool { return b.count() == 1 })
	began := time.Now()
	p.Stop()
	<-p.ended
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}

func TestAManyFacedNameIsBounded(t *testing.T) {
	f := echoing(t)
	b := &book{}
	var all []string
	for i := range 1000 {
		all = append(all, netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}).String())
	}
	b.set(nil, all...)
	p := startProxy(t, byName(b, f.Port(), nil))
	undisturbed(t, p.call())
	got := make(chan int)
	p.loop.Post(func() { got <- len(p.names[dbName].addrs) })
	if n := <-got; n != maxAddresses {
		t.Errorf("%d addresses are kept, want %d", n, maxAddresses)
	}
	// An address beyond those that are kept is still the name's.
	if p.logs.String() != "" && strings.Contains(p.logs.String(), "server address changed") {
		t.Error("a connection was closed")
	}
}

// nameServer answers A questions over UDP from a list that may change; other questions have no answer.
type nameServer struct {
	conn  net.PacketConn
	mu    sync.Mutex
	addrs []netip.Addr
	asked []string
}

func startNameServer(t *testing.T, addrs ...netip.Addr) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, addrs: addrs}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := s.answer(buf[:n]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return s
}

// answer words a response: the question again, and a record for each address.
func (s *nameServer) answer(q []byte) []byte {
	if len(q) < 12 {
		return nil
	}
	end := 12
	var labels []string
	for end < len(q) && q[end] != 0 && end+1+int(q[end]) < len(q) {
		labels = append(labels, string(q[end+1:end+1+int(q[end])]))
		end += 1 + int(q[end])
	}
	if end+5 > len(q) {
		return nil
	}
	question := q[12 : end+5]
	kind := binary.BigEndian.Uint16(q[end+1:])
	s.mu.Lock()
	defer s.mu.Unlock()
	name := strings.Join(labels, ".")
	s.asked = append(s.asked, name)
	var addrs []netip.Addr
	if kind == 1 && name == dbName {
		addrs = s.addrs
	}
	out := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1}, 0, byte(len(addrs)), 0, 0, 0, 0)
	if name != dbName {
		out[3] |= 3 // no such name
	}
	out = append(out, question...)
	for _, a := range addrs {
		out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4) // of the name in the question, for a minute
		out = append(out, a.AsSlice()...)
	}
	return out
}

func TestARealNameServerIsAsked(t *testing.T) {
	one, two := twoAddresses(t)
	s := startNameServer(t, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"))
	set := byName(&book{}, one.Port(), func(s *Settings, _ *Route) { s.DNS.MaxTTL = 0 })
	down := closedPort(t)
	set.DNS.Resolve = lookupAt([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(down)), s.conn.LocalAddr().String()})
	p := startProxy(t, set)
	p.holding(2)
	if one.Accepted() != 1 || two.Accepted() != 1 {
		t.Errorf("got %d and %d connections, want 1 of each", one.Accepted(), two.Accepted())
	}
	s.mu.Lock()
	asked := slices.Contains(s.asked, dbName)
	s.addrs = s.addrs[1:]
	s.mu.Unlock()
	if !asked {
		t.Error("the name server was not asked")
	}
	_, err := set.DNS.Resolve(t.Context(), "unknown.example.test.")
	if de := (*net.DNSError)(nil); !errors.As(err, &de) || !de.IsNotFound {
		t.Errorf("an unknown name: got %v", err)
	}
	p.holding(2)
	if one.Accepted() != 1 {
		t.Errorf("%d connections to an address that the name has lost, want 1", one.Accepted())
	}
}

func TestAnAnswerSaysNothingAboutAFamilyItLacks(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, c := range []struct {
		answer []netip.Addr
		ip     netip.Addr
		want   bool
	}{
		{[]netip.Addr{four, six}, four, false},
		{[]netip.Addr{four, six}, netip.MustParseAddr("10.0.0.2"), true},
		{[]netip.Addr{four, six}, netip.MustParseAddr("fd00::2"), true},
		{[]netip.Addr{six}, four, false},
		{[]netip.Addr{four}, six, false},
		{nil, four, false},
		{[]netip.Addr{four}, netip.Addr{}, false},
	} {
		if got := lost(c.answer, c.ip); got != c.want {
			t.Errorf("%v of %v: got %v", c.ip, c.answer, got)
		}
	}
}

func TestNameServersComeFromAFile(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 10.0.0.1\n# nameserver x\nsearch a b\nnameserver fe80::1%eth0 # two\noptions ndots:5\n": "",
		"search a\n":          "it names no nameserver; allowed: at least one",
		"":                    "it names no nameserver; allowed: at least one",
		"nameserver db.local": `nameserver is "db.local"; allowed: an address`,
		"nameserver 1.2.3":    `nameserver is "1.2.3"; allowed: an address`,
	} {
		look, err := ResolveBy([]byte(text))
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want || (look == nil) != (want != "") {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
