package pool

import "slices"

// Scope names a limit.
type Scope uint8

const (
	AllClients Scope = iota
	DatabaseClients
	UserClients
	DatabaseBackends
	UserBackends
)

// LimitError says which limit on clients is reached. Its text is PgBouncer's.
type LimitError struct {
	Scope Scope
	Name  string // of the database or user
	Max   int
}

func (e *LimitError) Error() string {
	switch e.Scope {
	case DatabaseClients:
		return "client connections exceeded (max_db_client_connections)"
	case UserClients:
		return "client connections exceeded (max_user_client_connections)"
	}
	return "no more connections allowed (max_client_conn)"
}

// limitKind tells the three limits that pools share backends under.
type limitKind uint8

const (
	serverCapacity limitKind = iota
	databaseBackends
	userBackends
)

// limit is one shared limit: the capacity of a server, or the maximum of a database or user.
type limit struct {
	kind limitKind
	name string
	max  int // backends; below 0: no limit

	// open counts every backend from Open until Closed or OpenFailed and is the sum of counts. It exceeds max only
	// after max was lowered, and never grows then.
	open   int
	counts [states]int
	all    backendList // in order of opening
	hungry int         // pools under this limit in Pools.hungry

	pools   int // that refer to it
	claims  int // during plan: slots promised to pools
	lowered Reason

	clients, maxClients int // of a database or user; maxClients 0: no limit

	pressure throttle // of a server or database
	deadline Time     // of a server: when the excess is killed
	timer    timer
}

// limit returns the limit of that name, made if there is none.
func (ps *Pools) limit(kind limitKind, name string) *limit {
	l := ps.shared[kind][name]
	if l == nil {
		l = &limit{kind: kind, name: name, max: -1, lowered: TooManyServers, deadline: Never}
		if kind == serverCapacity {
			l.lowered = CapacityLowered
		}
		l.timer.init(nil, l)
		ps.shared[kind][name] = l
	}
	return l
}

// forget drops a limit that nobody refers to and nobody set.
func (ps *Pools) forget(l *limit) {
	if l.pools == 0 && l.open == 0 && l.max < 0 && l.maxClients == 0 {
		ps.timers.set(&l.timer, Never)
		delete(ps.shared[l.kind], l.name)
	}
}

func (p *Pool) limitName(kind limitKind) string {
	switch kind {
	case databaseBackends:
		return p.key.Database
	case userBackends:
		return p.key.User
	}
	return p.settings.Server
}

func (l *limit) bounded() bool { return l.max >= 0 }

// excess is how many backends must still be closed to respect the limit.
func (l *limit) excess() int {
	if !l.bounded() {
		return 0
	}
	return l.open - l.counts[Closing] - l.max
}

// room is how many backends may be opened now.
func (l *limit) room() int { return l.max - l.open }

// prospect is how many may be opened once the closings under way are over, beyond those promised.
func (l *limit) prospect() int { return l.max - l.open + l.counts[Closing] - l.claims }

// oversize is how many backends of p must be closed to respect its size.
func (p *Pool) oversize() int {
	if p.settings.Size == 0 {
		return 0
	}
	return p.held - p.counts[Closing] - p.settings.Size - p.settings.ReserveSize
}

// SetLimit sets the maximum of a scope; 0 or less means none. The name is that of the database or user, and is not
// used for AllClients. Clients above a lowered limit stay; backends above it close as they become idle.
func (ps *Pools) SetLimit(now Time, scope Scope, name string, maximum int) {
	maximum = max(maximum, 0)
	kind := databaseBackends
	switch scope {
	case AllClients:
		ps.maxClients = maximum
		return
	case UserClients, UserBackends:
		kind = userBackends
	}
	l := ps.limit(kind, name)
	switch scope {
	case DatabaseClients, UserClients:
		l.maxClients = maximum
	case DatabaseBackends, UserBackends:
		l.max = maximum
		if maximum == 0 {
			l.max = -1
		}
		ps.trim(now, l)
		ps.plan(now, nil)
	}
	ps.forget(l)
}

// admit says whether one more client of p may connect.
func (ps *Pools) admit(p *Pool) error {
	d, u := p.limits[databaseBackends], p.limits[userBackends]
	switch {
	case ps.maxClients > 0 && ps.clients >= ps.maxClients:
		return &LimitError{Scope: AllClients, Max: ps.maxClients}
	case d.maxClients > 0 && d.clients >= d.maxClients:
		return &LimitError{Scope: DatabaseClients, Name: d.name, Max: d.maxClients}
	case u.maxClients > 0 && u.clients >= u.maxClients:
		return &LimitError{Scope: UserClients, Name: u.name, Max: u.maxClients}
	}
	return nil
}

// trim closes idle backends, the longest idle of all pools first, until the limit is respected or none is idle.
func (ps *Pools) trim(now Time, l *limit) {
	closed := ps.chosen[:0]
	for l.excess() > 0 && l.counts[Idle] > 0 {
		var b *Backend
		for o := l.all.head; o != nil; o = o.links[l.kind].next {
			if o.state == Idle && (b == nil || o.idleOrder < b.idleOrder) {
				b = o
			}
		}
		ps.close(now, b, l.lowered)
		closed = append(closed, b)
	}
	slices.SortFunc(closed, func(a, b *Backend) int { return comparePools(a.pool, b.pool) })
	for i, b := range closed {
		if i == 0 || b.pool != closed[i-1].pool {
			ps.changed(now, b.pool)
		}
	}
	clear(closed)
	ps.chosen = closed[:0]
}
