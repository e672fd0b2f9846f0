package pool

import "time"

// Pressure says whom a server turned away when it answered a login with "not now".
type Pressure uint8

const (
	// OnRole: the role has as many connections as it may have. It concerns one pool.
	OnRole Pressure = iota
	// OnDatabase: the database has. It concerns all pools of the database.
	OnDatabase
	// OnServer: the server has, or it is starting up or shutting down. It concerns all pools of the server.
	OnServer
)

// Pressures is how many kinds there are.
const Pressures = 3

var pressureNames = [Pressures]string{"role", "database", "server"}

func (p Pressure) String() string { return pressureNames[p] }

// firstPressure is the ceiling of the first pause. Each pause is of a random length up to its ceiling, so that poolers
// that were turned away together do not come back together; the ceiling doubles up to LoginRetry.
const firstPressure = 50 * time.Millisecond

// throttle holds attempts back after a server said "not now". While it has steps there is one attempt at a time.
type throttle struct {
	steps int  // doublings of the pause; each pause adds one, each login that succeeds halves them
	until Time // no attempt starts before a Tick at or after it
}

func (t *throttle) holds(ticked Time, opening int) bool {
	return t.steps > 0 && (t.until > ticked || opening > 0)
}

// press begins a pause. Attempts that were under way together count once.
func (t *throttle) press(now Time, ceiling time.Duration, seed, n uint64) {
	if t.until > now {
		return
	}
	delay := ceiling
	if t.steps < 20 { // beyond, the shift alone passes any ceiling
		delay = min(delay, firstPressure<<t.steps)
		t.steps++
	}
	t.until = after(now, 1+time.Duration(splitmix64(seed+n)%uint64(delay)))
}

func (t *throttle) relieve() { t.steps, t.until = t.steps/2, 0 }

// Pressed says that the attempt is over and holds no slot, because the server has no room now or does not serve yet.
// Unlike OpenFailed it fails nobody: attempts under the same pressure are made one at a time, after pauses.
func (ps *Pools) Pressed(now Time, b *Backend, by Pressure) {
	if b.state == Closing {
		ps.Closed(now, b)
		return
	}
	b.must("Pressed", Opening)
	p := b.pool
	p.served.failures++
	ps.forgetBackend(b)
	n := uint64(p.served.failures)<<1 | 1
	if by == OnRole {
		p.pressure.press(now, p.settings.LoginRetry, p.seed, n)
	} else if l := b.limits[by.kind()]; ps.shared[l.kind][l.name] == l { // else the pool has moved on
		l.pressure.press(now, p.settings.LoginRetry, p.seed, n)
		ps.armLimit(l)
	}
	ps.changed(now, p)
	ps.vanish(p)
	ps.plan(now, nil)
}

// kind is the limit under which the pools are that a pressure concerns.
func (p Pressure) kind() limitKind {
	if p == OnDatabase {
		return databaseBackends
	}
	return serverCapacity
}

// relieve takes back a part of the pressure on b's pool, server and database, because b was let in.
func (b *Backend) relieve() {
	b.pool.pressure.relieve()
	b.limits[serverCapacity].pressure.relieve()
	b.limits[databaseBackends].pressure.relieve()
}

// heldBack says whether pressure forbids p to open a backend now.
func (p *Pool) heldBack() bool {
	if p.pressure.holds(p.ps.ticked, p.counts[Opening]) {
		return true
	}
	for _, l := range p.limits {
		if l.pressure.holds(p.ps.ticked, l.counts[Opening]) {
			return true
		}
	}
	return false
}

// armLimit sets the timer of a limit to what is due first.
func (ps *Pools) armLimit(l *limit) {
	at := Never
	if l.excess() > 0 {
		at = l.deadline
	}
	if l.pressure.until > ps.ticked {
		at = min(at, l.pressure.until)
	}
	ps.timers.set(&l.timer, at)
}

// Failing says that the pool waits before its next attempt, because the last ones failed, and has nothing that could
// serve.
func (p *Pool) Failing(now Time) bool {
	return p.retryAt > now && p.counts[Idle]+p.counts[Active]+p.counts[Testing] == 0
}

// Dismiss says that b must serve nobody else: it closes now if it is idle, else as soon as nobody uses it.
func (ps *Pools) Dismiss(now Time, b *Backend, reason Reason) {
	if b.state == Closing || b.dismissed != NoReason {
		return
	}
	b.dismissed = reason
	if b.state == Idle {
		ps.close(now, b, reason)
		ps.changed(now, b.pool)
		ps.plan(now, nil)
	}
}
