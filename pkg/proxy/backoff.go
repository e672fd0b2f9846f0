package proxy

import (
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
)

// Backpressure is a server's word that it has no room for a login now, or does not serve yet.
type Backpressure struct {
	Server string // as SetCapacity calls it
	Addr   string // of the one host that said it, "host:port" or the path of a Unix socket
	// Scope is whom it concerns: the role Key.User, the database Key.Database, or everybody.
	Scope    pool.Pressure
	Key      pool.Key
	SQLSTATE string
	At       time.Time
}

// pressed is what one host said.
type pressed struct {
	addr string
	err  *LoginError
}

// Where PostgreSQL raises the 53300 of a CONNECTION LIMIT. The texts are translated, the names of functions are not.
const (
	roleLimitRoutine     = "InitializeSessionUserId"
	databaseLimitRoutine = "CheckMyDatabase"
)

// pressure tells whom a refusal concerns that is no failure: there is no room now, or the server does not serve yet.
// False of nil and of all other refusals.
func (e *LoginError) pressure() (scope pool.Pressure, ok bool) {
	if e == nil || e.during != "" {
		return 0, false
	}
	switch e.Code {
	case "57P03", "57P01", "57P02":
		return pool.OnServer, true
	case "53300":
	default:
		return 0, false
	}
	switch {
	case e.routine == roleLimitRoutine, e.routine == "" && strings.HasPrefix(e.Message, "too many connections for role "):
		return pool.OnRole, true
	case e.routine == databaseLimitRoutine, e.routine == "" && strings.HasPrefix(e.Message, "too many connections for database "):
		return pool.OnDatabase, true
	}
	return pool.OnServer, true // "sorry, too many clients already", "remaining connection slots are reserved …", or another pooler's
}

// loginError reads a server's answer to a login.
func loginError(body []byte) *LoginError {
	return &LoginError{ErrorFields: pgwire.ReadError(body), routine: pgwire.ErrorRoutine(body)}
}

// tellPressure counts what hosts said and tells who listens.
func (p *Proxy) tellPressure(pl *pooled, said []pressed) {
	for _, s := range said {
		scope, ok := s.err.pressure()
		if !ok {
			continue
		}
		p.counters.Backpressure[scope]++
		if p.set.OnBackpressure != nil {
			p.set.OnBackpressure(Backpressure{
				Server: pl.route.server(), Addr: s.addr, Scope: scope, Key: pl.pool.Key(), SQLSTATE: s.err.Code, At: time.Now(),
			})
		}
	}
}

// knownStates are the SQLSTATEs that failed attempts are counted by; a server can send any five letters.
var knownStates = map[string]bool{
	"28000": true, "28P01": true, "3D000": true, "42501": true, "42704": true, "53300": true, "53200": true, "53400": true,
	"55000": true, "57P01": true, "57P02": true, "57P03": true, "0A000": true, "08P01": true, "08004": true, "08006": true,
	"XX000": true,
}

// countFailure counts a failed attempt by SQLSTATE: "none" where the server did not answer with an error at all.
func (p *Proxy) countFailure(err error) {
	state := "none"
	if le := (*LoginError)(nil); errors.As(err, &le) {
		if state = le.Code; !knownStates[state] {
			state = "other"
		}
	}
	if p.dialFailures == nil {
		p.dialFailures = map[string]uint64{}
	}
	p.dialFailures[state]++
}

func (p *Proxy) failuresByState() map[string]uint64 { return maps.Clone(p.dialFailures) }

// openFailed tells the pool how an attempt of its own has failed.
func (p *Proxy) openFailed(b *pool.Backend, le *LoginError, permanent bool) {
	if scope, ok := le.pressure(); ok {
		p.pools.Pressed(p.now(), b, scope)
		return
	}
	p.pools.OpenFailed(p.now(), b, permanent)
}

// failsFast says why a client of pl need not wait: the last login was refused for good, and the next is not due yet.
func (p *Proxy) failsFast(pl *pooled) (code, message string, ok bool) {
	if pl.refusal == nil || !pl.pool.Failing(p.now()) {
		return "", "", false
	}
	return pl.refusal.Code, "server login has been failing, cached error: " + pl.refusal.Message + " (server_login_retry)", true
}
