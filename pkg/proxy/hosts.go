package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgberth/pgberth/pkg/pool"
)

// LoadBalance is how a route's several hosts are used.
type LoadBalance uint8

const (
	// RoundRobin begins each new connection with the next host.
	RoundRobin LoadBalance = iota
	// StickToOne begins each with the host that worked last, at first with the first one.
	StickToOne
)

// leastShare is what one address gets of the time for all, as long as there is so much.
const leastShare = 500 * time.Millisecond

// candidate is an address that a connection may be opened to.
type candidate struct {
	host  string
	port  int
	ip    netip.Addr // of a host that is a name or an address; the zero value for directories of Unix sockets
	index int        // of the host in its route
}

func (r *Route) portOf(host int) int {
	if len(r.Ports) > 0 {
		return r.Ports[host]
	}
	return r.Port
}

// server names the database server: what shares a capacity.
func (r *Route) server() string {
	if len(r.Ports) == 0 {
		return strings.Join(r.Hosts, ",") + ":" + strconv.Itoa(r.Port)
	}
	each := make([]string, len(r.Hosts))
	for i, h := range r.Hosts {
		each[i] = h + ":" + strconv.Itoa(r.Ports[i])
	}
	return strings.Join(each, ",")
}

// sameWay says whether connections to both routes are opened in the same way.
func (r *Route) sameWay(o *Route) bool {
	return r.Balance == o.Balance && r.Target == o.Target && r.ConnectQuery == o.ConnectQuery
}

// anyTurn is where taking turns begins: not with the first one in every pod of a fleet.
func anyTurn() int { return rand.IntN(1 << 16) }

// turns orders the hosts for the next connection, by index.
func (pl *pooled) turns() []int {
	n := len(pl.route.Hosts)
	first := pl.worked
	if pl.route.Balance == RoundRobin {
		first = pl.dials
		pl.dials++
	}
	order := make([]int, n)
	for i := range order {
		order[i] = (first + i) % n
	}
	return order
}

// String is the address as a log names it.
func (c candidate) String() string {
	if strings.HasPrefix(c.host, "/") {
		return c.host + "/.s.PGSQL." + strconv.Itoa(c.port)
	}
	host := c.host
	if c.ip.IsValid() {
		host = c.ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(c.port))
}

// address is what to dial.
func (c candidate) address() (network, addr string) {
	if strings.HasPrefix(c.host, "/") {
		return "unix", c.String()
	}
	return "tcp", c.String()
}

// outcome is what became of an attempt over several hosts.
type outcome struct {
	dialed *dialed // nil if none would do
	err    error
	said   []pressed
}

// reach tries the candidates in turn until one lets the pooler in and is what the database asks for. Like dial it blocks.
// A candidate gets its share of the time; who refuses for good ends the attempt, as with libpq.
func reach(ctx context.Context, spec dialSpec, to []candidate) outcome {
	var out outcome
	var failed []error
	var second *dialed // where a standby is preferred: what would do otherwise
	var deadline time.Time
	if spec.timeout > 0 {
		deadline = time.Now().Add(spec.timeout)
	}
	for i, c := range to {
		one := spec
		one.to, one.host, one.port = c, c.host, c.port
		if spec.timeout > 0 {
			// Rounded, because an error may name it.
			if one.timeout = shareOf(time.Until(deadline), len(to)-i).Round(10 * time.Millisecond); one.timeout <= 0 {
				failed = append(failed, errors.New("connect timeout: no time was left for the other addresses"))
				break
			}
		}
		d, err := dial(ctx, one)
		if err == nil {
			d.at = c
			if spec.target == PreferStandby && !d.role.standby && i < len(to)-1 && second == nil {
				second = d
				continue
			}
			if spec.target == PreferStandby && !d.role.standby && second != nil {
				d.close()
				continue
			}
			out.dialed = d
			break
		}
		var le *LoginError
		if errors.As(err, &le) {
			if _, ok := le.pressure(); ok {
				out.said = append(out.said, pressed{addr: c.String(), err: le})
			}
		}
		if len(to) > 1 {
			err = fmt.Errorf("%s: %w", c, err)
		}
		if le != nil && le.permanent() {
			failed = []error{err} // what others said before does not matter
			break
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	switch {
	case out.dialed != nil:
		if second != nil {
			second.close()
		}
	case second != nil:
		out.dialed = second
	case len(failed) == 0:
		out.err = errNoHost
	case len(failed) == 1:
		out.err = failed[0]
	default:
		out.err = &noHostError{failed}
	}
	return out
}

// share of the time that is left for one of so many addresses.
func shareOf(left time.Duration, addresses int) time.Duration {
	return min(left, max(left/time.Duration(addresses), leastShare))
}

// noHostError says why none of several addresses would do.
type noHostError struct{ each []error }

func (e *noHostError) Error() string {
	texts := make([]string, 0, len(e.each))
	for _, err := range e.each[:min(len(e.each), 8)] {
		texts = append(texts, err.Error())
	}
	return fmt.Sprintf("none of %d addresses would do: %s", len(e.each), strings.Join(texts, "; "))
}

func (e *noHostError) Unwrap() []error { return e.each }

// connect resolves the hosts of a route and reaches for them; then is called in the loop.
func (p *Proxy) connect(pl *pooled, spec dialSpec, then func(*dialed, error)) {
	began := p.loop.Clock()
	route := &pl.route
	p.resolve(route, pl.turns(), func(to []candidate, err error) {
		if len(to) == 0 {
			p.loop.Post(func() { then(nil, err) }) // not from within the caller, who is in the middle of something
			return
		}
		if spec.timeout > 0 {
			spec.timeout = max(spec.timeout-(p.loop.Clock()-began), time.Millisecond)
		}
		p.work(func() {
			out := reach(p.ctx, spec, to)
			posted := p.loop.Post(func() {
				p.tellPressure(pl, out.said)
				if out.dialed != nil {
					pl.worked = out.dialed.at.index % len(pl.route.Hosts)
				}
				then(out.dialed, out.err)
			})
			if !posted && out.dialed != nil {
				out.dialed.close()
			}
		})
	})
}

// moveOn closes the connections to addresses that their host's name no longer stands for, as soon as nobody uses them.
func (p *Proxy) moveOn(host string, addrs []netip.Addr) {
	for s := range p.servers {
		if s.at.host == host && lost(addrs, s.at.ip) && !s.closing && !s.closed {
			p.pools.Dismiss(p.now(), s.pb, pool.AddressGone)
		}
	}
}

// control sets a server connection's options before it is made: the size of its buffers decides what it announces.
func (ka KeepAlive) control(network, _ string, raw syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	return raw.Control(func(fd uintptr) { tune(int(fd), ka) })
}
