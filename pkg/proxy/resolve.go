package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pgberth/pgberth/pkg/eventloop"
)

const (
	// lookupTimeout bounds one look-up of a name.
	lookupTimeout = 5 * time.Second
	// maxAddresses is how many addresses of one name are used.
	maxAddresses = 64
)

// Resolve finds the addresses of a host name. It blocks until ctx ends.
type Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

// DNS is how names of servers are looked up.
type DNS struct {
	MaxTTL      time.Duration // how long an answer is used; 0 is for one connection
	NegativeTTL time.Duration // how long a failure is
	// CheckPeriod is how often the names of connected servers are looked up although no connection is opened; 0 is never.
	CheckPeriod time.Duration
	Resolve     Resolve // nil is the system's
}

// name is a host name and what is known of it. All names belong to the loop; look-ups run outside, one for each name.
type name struct {
	host    string
	addrs   []netip.Addr // of the last answer, sorted; they stay in use while look-ups fail
	err     error        // of the last look-up
	until   time.Duration
	turn    int
	looking bool
	waiting []func() // for the look-up under way
}

// resolve finds the addresses of a route's hosts, in the given order; each name's addresses in turn. then is called in
// the loop, at once where everything is known.
func (p *Proxy) resolve(r *Route, order []int, then func([]candidate, error)) {
	unresolved := make([]candidate, 0, len(order))
	for _, i := range order {
		unresolved = append(unresolved, candidate{host: r.Hosts[i], port: r.portOf(i), index: i})
	}
	pending := 1
	done := func() {
		if pending--; pending == 0 {
			then(p.candidates(unresolved))
		}
	}
	for _, c := range unresolved {
		if _, isName := literal(c.host); isName {
			pending++
			p.refresh(c.host, done)
		}
	}
	done()
}

// literal is the address that a host is written as; isName of neither an address nor a directory.
func literal(host string) (ip netip.Addr, isName bool) {
	if strings.HasPrefix(host, "/") {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(host)
	return ip, err != nil
}

// candidates expands names to addresses. The error is that of the names without any.
func (p *Proxy) candidates(unresolved []candidate) (out []candidate, err error) {
	for _, c := range unresolved {
		ip, isName := literal(c.host)
		if !isName {
			c.ip = ip
			out = append(out, c)
			continue
		}
		n := p.names[c.host]
		if n == nil || len(n.addrs) == 0 {
			if n != nil && n.err != nil {
				err = errors.Join(err, fmt.Errorf("server DNS lookup failed: %s: %w", c.host, n.err))
			}
			continue
		}
		n.turn++
		for i := range n.addrs {
			c.ip = n.addrs[(n.turn+i)%len(n.addrs)]
			out = append(out, c)
		}
	}
	if len(out) == 0 && err == nil {
		err = errNoHost
	}
	return out, err
}

// refresh looks a name up, unless what is known is fresh, and calls done in the loop.
func (p *Proxy) refresh(host string, done func()) {
	n := p.names[host]
	if n == nil {
		n = &name{host: host, turn: anyTurn()}
		p.names[host] = n
	}
	if !n.looking && n.until > p.loop.Clock() {
		done()
		return
	}
	n.waiting = append(n.waiting, done)
	if n.looking {
		return
	}
	n.looking = true
	look := p.set.DNS.Resolve
	if look == nil {
		look = systemLookup
	}
	p.work(func() {
		ctx, stop := context.WithTimeout(p.ctx, lookupTimeout)
		addrs, err := look(ctx, host)
		stop()
		p.loop.Post(func() {
			p.found(n, addrs, err)
			p.settle()
		})
	})
}

// found takes in the answer to a look-up.
func (p *Proxy) found(n *name, addrs []netip.Addr, err error) {
	n.looking = false
	n.err = err
	ttl := p.set.DNS.MaxTTL
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no addresses", Name: n.host, IsNotFound: true}
		n.err = err
	}
	var de *net.DNSError
	switch {
	case err == nil:
		// Copied and sorted: the order of an answer means nothing, and the same set must be the same list.
		addrs = slices.Clone(addrs)
		for i := range addrs {
			addrs[i] = addrs[i].Unmap()
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		addrs = slices.Compact(addrs)
		n.addrs = addrs[:min(len(addrs), maxAddresses)]
		p.moveOn(n.host, addrs)
	case errors.As(err, &de) && de.IsNotFound:
		// The name has gone, and its addresses may be somebody else's by now: nothing new is opened to them.
		n.addrs = nil
		ttl = p.set.DNS.NegativeTTL
	default:
		ttl = p.set.DNS.NegativeTTL
		p.log.Warn("DNS lookup failed", "host", n.host, "known_addresses", len(n.addrs), "error", err)
	}
	n.until = p.loop.Clock() + ttl
	waiting := n.waiting
	n.waiting = nil
	for _, done := range waiting {
		done()
	}
}

// stale says whether a connection was opened to an address that its host's name no longer stands for.
func (p *Proxy) stale(c candidate) bool {
	n := p.names[c.host]
	return n != nil && n.err == nil && lost(n.addrs, c.ip)
}

// lost says whether an address is missing from an answer. IPv4 and IPv6 are asked for apart, and a failure of one leaves
// an answer of the other alone: it says nothing about the family it does not have.
func lost(answer []netip.Addr, ip netip.Addr) bool {
	family := func(a netip.Addr) bool { return a.Is4() == ip.Is4() }
	return ip.IsValid() && slices.ContainsFunc(answer, family) && !slices.Contains(answer, ip)
}

// checkNames looks up the names of all connected servers, and does so again in every period.
func (p *Proxy) checkNames() {
	used := map[string]bool{}
	for s := range p.servers {
		if n := p.names[s.at.host]; n != nil && !n.looking && !used[n.host] {
			used[n.host] = true
			n.until = 0
			p.refresh(n.host, func() {})
		}
	}
	p.armNameCheck()
}

func (p *Proxy) armNameCheck() {
	if period := p.set.DNS.CheckPeriod; period > 0 && !p.stopping {
		p.loop.Set(&p.nameCheck, p.loop.Clock()+period, p.checkNames)
	} else {
		p.loop.Unset(&p.nameCheck)
	}
}

// forgetNames drops the names that nobody uses any more. A reload calls it.
func (p *Proxy) forgetNames() {
	used := map[string]bool{}
	for s := range p.servers {
		used[s.at.host] = true
	}
	for _, pl := range p.pooled {
		for _, h := range pl.route.Hosts {
			used[h] = true
		}
	}
	for host, n := range p.names {
		if !n.looking && !used[host] {
			delete(p.names, host)
		}
	}
	p.armNameCheck()
}

// nameBook is the proxy's part in this.
type nameBook struct {
	names     map[string]*name
	nameCheck eventloop.Timer
}

// goResolver does not use the C library, whose look-ups cannot be ended.
var goResolver = &net.Resolver{PreferGo: true}

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return goResolver.LookupNetIP(ctx, "ip", host)
}

// ResolveBy is the look-up by the name servers of a resolv.conf. Nothing else in it is heeded: search domains and options
// are those of the system.
func ResolveBy(resolvConf []byte) (Resolve, error) {
	var servers []string
	for lines := bufio.NewScanner(bytes.NewReader(resolvConf)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip, err := netip.ParseAddr(fields[1])
		if err != nil {
			return nil, fmt.Errorf("nameserver is %q; allowed: an address", fields[1])
		}
		servers = append(servers, net.JoinHostPort(ip.String(), "53"))
	}
	if len(servers) == 0 {
		return nil, errors.New("it names no nameserver; allowed: at least one")
	}
	return lookupAt(servers), nil
}

// lookupAt asks the servers in order until one of them answers, be it that there is no such name.
func lookupAt(servers []string) Resolve {
	var each []*net.Resolver
	for _, server := range servers {
		var d net.Dialer
		each = append(each, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, server)
		}})
	}
	return func(ctx context.Context, host string) (addrs []netip.Addr, err error) {
		for _, r := range each {
			one, stop := context.WithTimeout(ctx, lookupTimeout/time.Duration(len(each)))
			addrs, err = r.LookupNetIP(one, "ip", host)
			stop()
			var de *net.DNSError
			if err == nil || errors.As(err, &de) && de.IsNotFound || ctx.Err() != nil {
				break
			}
		}
		return addrs, err
	}
}
