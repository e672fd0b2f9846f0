package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
)

// TargetSession is what a server must be for a database's connections, as libpq's target_session_attrs says it.
type TargetSession uint8

const (
	AnySession TargetSession = iota
	// ReadWrite: no standby, and transactions are not read-only by default.
	ReadWrite
	// ReadOnly is the contrary of ReadWrite.
	ReadOnly
	// Primary is no standby.
	Primary
	// Standby is in recovery.
	Standby
	// PreferStandby is Standby, or anything where no host is a standby.
	PreferStandby
)

// serverRole is what a server is.
type serverRole struct{ standby, readOnly bool }

func (t TargetSession) fits(r serverRole) bool {
	switch t {
	case ReadWrite:
		return !r.standby && !r.readOnly
	case ReadOnly:
		return r.standby || r.readOnly
	case Primary:
		return !r.standby
	case Standby:
		return r.standby
	}
	return true
}

// wants words it for an error.
func (t TargetSession) wants() string {
	return [...]string{"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}[t]
}

const (
	hotStandby      = "in_hot_standby"
	defaultReadOnly = "default_transaction_read_only"
)

// prepare makes a connection that has logged in ready for use: it looks what the server is, and runs connect_query.
func (l *serverLogin) prepare() error {
	if l.spec.target != AnySession {
		if err := l.examine(); err != nil {
			return err
		}
	}
	if l.spec.connectQuery != "" {
		if _, err := l.query("connect_query", l.spec.connectQuery); err != nil {
			return err
		}
	}
	return nil
}

// examine looks what the server is. From version 14 on it has said so; before it must be asked.
func (l *serverLogin) examine() error {
	standby, says := l.parameter(hotStandby)
	readOnly, saysToo := l.parameter(defaultReadOnly)
	role := serverRole{standby: standby == "on", readOnly: readOnly == "on"}
	if !says || !saysToo {
		ask, answer := "SELECT pg_catalog.pg_is_in_recovery()", "t"
		if t := l.spec.target; t == ReadWrite || t == ReadOnly {
			ask, answer = "SHOW transaction_read_only", "on"
		}
		value, err := l.query("target_session_attrs", ask)
		if err != nil {
			return err
		}
		role = serverRole{standby: value == answer}
	}
	if !l.spec.target.fits(role) {
		is := "a primary"
		if role.standby {
			is = "a standby or read-only"
		} else if role.readOnly {
			is = "read-only by default"
		}
		return fmt.Errorf("server is %s, target_session_attrs is %s", is, l.spec.target.wants())
	}
	l.out.role = role
	return nil
}

func (l *serverLogin) parameter(name string) (value string, ok bool) {
	for _, kv := range l.out.params {
		if kv.Name == name {
			value, ok = kv.Value, true // the last one counts
		}
	}
	return value, ok
}

// query has the server do a query of the pooler's own before its connection is used, and returns the first value of the
// first row. what names the setting it is for.
func (l *serverLogin) query(what, sql string) (value string, err error) {
	if _, err := l.conn.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return "", fmt.Errorf("%s failed: %w", what, err)
	}
	rows := 0
	for range maxLoginMessages {
		typ, body, err := l.next()
		if err != nil {
			return "", fmt.Errorf("%s failed: %w", what, err)
		}
		switch typ {
		case pgwire.ErrorResponse:
			return "", during(what, loginError(body))
		case pgwire.ParameterStatus, pgwire.NoticeResponse, pgwire.NotificationResponse:
			if _, err := l.handle(typ, body); err != nil {
				return "", err
			}
		case pgwire.RowDescription, pgwire.CommandComplete, pgwire.EmptyQueryResponse:
		case pgwire.DataRow:
			if rows++; rows == 1 {
				value = firstColumn(body)
			}
		case pgwire.ReadyForQuery:
			if len(body) != 1 || body[0] != pgwire.StatusIdle {
				return "", during(what, &LoginError{ErrorFields: pgwire.ErrorFields{Code: "25001", Message: "it leaves a transaction open"}})
			}
			return value, nil
		default:
			return "", fmt.Errorf("%s failed: server answered it with message %s", what, pgwire.TypeName(typ))
		}
	}
	return "", fmt.Errorf("%s failed: its answer has more than %d messages", what, maxLoginMessages)
}

// during says which query of the pooler's own an error answers.
func during(what string, e *LoginError) *LoginError {
	e.during, e.Message = what, what+" failed: "+e.Message
	return e
}

// transient: a query that failed so may succeed the next time. The classes are those for rollbacks, a lack of resources,
// an operator's intervention, and errors of the system.
func transient(sqlstate string) bool {
	for _, class := range []string{"40", "53", "57", "58"} {
		if strings.HasPrefix(sqlstate, class) {
			return true
		}
	}
	return false
}

// firstColumn reads the first value of a DataRow as text; "" for NULL and for what cannot be read.
func firstColumn(body []byte) string {
	if len(body) < 6 {
		return ""
	}
	n := int32(uint32(body[2])<<24 | uint32(body[3])<<16 | uint32(body[4])<<8 | uint32(body[5]))
	if n < 0 || int(n) > len(body)-6 {
		return ""
	}
	return string(body[6 : 6+n])
}

// roleReported: a server has said what it is now. If that no longer fits, its connections serve nobody else.
func (s *server) roleReported(name, value string) {
	if s.pooled.route.Target == AnySession {
		return
	}
	switch {
	case name == hotStandby:
		for o := range s.p.servers {
			if o.remote == s.remote {
				o.role.standby = value == "on"
				o.dismissUnfit()
			}
		}
	case name == defaultReadOnly && s.client == nil && s.task == taskNone: // else it is a client's own setting
		s.role.readOnly = value == "on"
		s.dismissUnfit()
	}
}

func (s *server) dismissUnfit() {
	if !s.closing && !s.closed && !s.pooled.route.Target.fits(s.role) {
		s.p.pools.Dismiss(s.p.now(), s.pb, pool.WrongRole)
	}
}

// refusedWrite: an error to a client says that the server is read-only. Where the database is to be writable, the
// connection is not used again, and the next one is examined.
func (s *server) refusedWrite(body []byte) {
	if t := s.pooled.route.Target; t != ReadWrite && t != Primary {
		return
	}
	if bytes.Contains(body[:min(len(body), 64)], []byte("\x00C25006\x00")) {
		s.p.pools.Dismiss(s.p.now(), s.pb, pool.WrongRole)
	}
}

var errNoHost = errors.New("there is no address to connect to")
