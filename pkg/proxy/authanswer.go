package proxy

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// answer is what auth_query has answered so far. It keeps one row of a bounded size whatever comes.
type answer struct {
	rows         int
	name, secret string
	null         bool   // the secret is
	trouble      string // the first thing that is wrong with it
}

// finding is what is known of a user now.
type finding struct {
	found  bool // there is a secret
	exists bool // there is a user
	secret string
	asked  uint64 // see login
	reason string // why there is none, for the log
	repair string // what is wrong with auth_query itself, for the log
	// code and refusal are for the client, when it is nobody's fault who logs in.
	code, refusal string
}

// hears: it wants to see messages of this type.
func (a *answer) hears(typ byte) bool {
	switch typ {
	case pgwire.RowDescription, pgwire.DataRow, pgwire.NoData, pgwire.CopyInResponse, pgwire.CopyOutResponse, pgwire.CopyBothResponse:
		return true
	}
	return false
}

// heard takes one message. body is whole up to wholeMessage; of a longer one it is the beginning.
func (a *answer) heard(typ byte, size int, body []byte) {
	switch {
	case typ == pgwire.NoData:
		a.wrong("it returns no columns; allowed is a query with two: the user's name and secret")
	case typ != pgwire.RowDescription && typ != pgwire.DataRow:
		a.wrong("it is a COPY; allowed is a query with two columns: the user's name and secret")
	case size > wholeMessage:
		a.wrong("it returns %d bytes in one row; allowed are %d", size, wholeMessage)
	case typ == pgwire.RowDescription:
		a.columns(body)
	default:
		a.row(body)
	}
}

func (a *answer) wrong(format string, args ...any) {
	if a.trouble == "" {
		a.trouble = fmt.Sprintf(format, args...)
	}
}

// textTypes are the types whose text is what they hold: text, varchar, bpchar, name, "char", unknown, cstring.
var textTypes = map[uint32]bool{25: true, 1043: true, 1042: true, 19: true, 18: true, 705: true, 2275: true}

// longestName is where PostgreSQL cuts a name, in bytes.
const longestName = 63

// firstOwnType: types from here on are a database's own, such as citext.
const firstOwnType = 16384

func (a *answer) columns(body []byte) {
	if len(body) < 2 {
		a.wrong("the server describes its columns by %d bytes", len(body))
		return
	}
	n, rest := binary.BigEndian.Uint16(body), body[2:]
	if n != 2 {
		a.wrong("it returns %d columns; allowed are 2: the user's name and secret", n)
		return
	}
	for i := range 2 {
		_, fields, ok := pgwire.NextString(rest)
		if !ok || len(fields) < 18 {
			a.wrong("the server's description of its columns is cut short")
			return
		}
		if oid := binary.BigEndian.Uint32(fields[6:]); !textTypes[oid] && oid < firstOwnType {
			a.wrong("its column %d has the type with OID %d; allowed are text and its like", i+1, oid)
		}
		rest = fields[18:]
	}
}

func (a *answer) row(body []byte) {
	if a.rows++; a.rows > 1 {
		a.wrong("it returns more than one row for a user")
		return
	}
	if len(body) < 2 || binary.BigEndian.Uint16(body) != 2 {
		a.wrong("the server's row does not have 2 columns")
		return
	}
	name, rest, ok := pgwire.NextValue(body[2:])
	secret, rest, ok2 := pgwire.NextValue(rest)
	switch {
	case !ok || !ok2 || len(rest) > 0:
		a.wrong("the server's row is cut short, or too long")
	case name == nil:
		a.wrong("the user's name in its first column is NULL")
	case strings.IndexByte(string(secret), 0) >= 0:
		a.wrong("the secret in its second column has a NUL byte; allowed are a password, md5… and SCRAM-SHA-256$…")
	default:
		a.name, a.secret, a.null = string(name), string(secret), secret == nil
	}
}

// finding sums up. failed is the error it ended with.
func (a *answer) finding(user string, failed *pgwire.ErrorFields) finding {
	broken := func(why string) finding { return finding{reason: "auth_query failed", repair: why} }
	switch {
	case failed != nil:
		return failing(failed)
	case a.trouble != "":
		return broken(a.trouble)
	case a.rows == 0:
		return finding{reason: "no such user"}
	case len(user) > longestName && strings.HasPrefix(user, a.name):
		return finding{reason: "no such user: the name is longer than a server's can be"}
	case a.name != user:
		return broken(fmt.Sprintf("the user's name in its first column is not the one asked for, which is $1 (%d bytes asked, %d found)", len(user), len(a.name)))
	case a.null:
		return finding{exists: true, reason: "the user has no password, or it has expired"}
	case a.secret == "":
		return finding{exists: true, reason: "the user's password is empty"}
	}
	return finding{exists: true, found: true, secret: a.secret}
}

// failing tells what to do about an error of auth_query.
func failing(e *pgwire.ErrorFields) finding {
	switch e.Code {
	case "22021", "22P05": // only the client is to blame
		return finding{reason: "no such user: the name is not valid in the server's encoding"}
	}
	said := fmt.Sprintf("%s (SQLSTATE %s)", e.Message[:min(len(e.Message), 200)], e.Code)
	hint := "auth_query must return one row of two columns for the user $1"
	switch e.Code {
	case "42501":
		hint = "auth_user needs the right to read that, or a SECURITY DEFINER function that it may execute"
	case "42883", "42P01", "3F000", "42703":
		hint = "create it in the database auth_query runs in (auth_dbname, else the client's), or name it with its schema"
	case "08P01", "42P02", "42P18":
		hint = "auth_query must use $1, the user's name, and no other parameter"
	}
	if len(e.Code) == 5 {
		switch e.Code[:2] {
		case "08", "40", "53", "55", "57", "58", "XX": // not the query, but the server's state
			if e.Code != "08P01" {
				return finding{repair: said, code: "08006", refusal: cannotLookUp}
			}
		}
	}
	return finding{reason: "auth_query failed", repair: said + ": " + hint}
}
