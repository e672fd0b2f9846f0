// Package pgwire finds message boundaries in the PostgreSQL protocol, versions 3.0 and 3.2, and writes the few messages
// a pooler says itself.
//
// It works on byte slices and refuses to read, write, log or allocate for what it only relays: rows and parameters are
// never decoded. Bounds come first: everything here may come from a hostile peer.
package pgwire

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// HeaderSize is a typed message's header: one type byte and a big-endian length that counts itself but not the type.
const HeaderSize = 5

// Message types a client sends. Source: PostgreSQL documentation, "Message Formats".
const (
	Query        = 'Q'
	Parse        = 'P'
	Bind         = 'B'
	Describe     = 'D'
	Execute      = 'E'
	Close        = 'C'
	Sync         = 'S'
	Flush        = 'H'
	FunctionCall = 'F'
	CopyData     = 'd' // both directions
	CopyDone     = 'c' // both directions
	CopyFail     = 'f'
	Terminate    = 'X'
	Password     = 'p' // also SASL responses
)

// Message types a server sends.
const (
	Authentication       = 'R'
	BackendKeyData       = 'K'
	ParameterStatus      = 'S'
	ReadyForQuery        = 'Z'
	ErrorResponse        = 'E'
	NoticeResponse       = 'N'
	NotificationResponse = 'A'
	ParseComplete        = '1'
	BindComplete         = '2'
	CloseComplete        = '3'
	ParameterDescription = 't'
	RowDescription       = 'T'
	NoData               = 'n'
	DataRow              = 'D'
	CommandComplete      = 'C'
	EmptyQueryResponse   = 'I'
	PortalSuspended      = 's'
	CopyInResponse       = 'G'
	CopyOutResponse      = 'H'
	CopyBothResponse     = 'W'
	FunctionCallResponse = 'V'
	NegotiateProtocol    = 'v'
)

// Transaction status in ReadyForQuery.
const (
	StatusIdle   = 'I'
	StatusInTx   = 'T'
	StatusFailed = 'E'
)

// Header reads the header at the start of b. size is the whole message, type byte included. ok is false while fewer
// than HeaderSize bytes are there; a length below the minimum or above limit is an error whatever follows.
func Header(b []byte, limit int) (typ byte, size int, ok bool, err error) {
	if len(b) < HeaderSize {
		return 0, 0, false, nil
	}
	n := binary.BigEndian.Uint32(b[1:HeaderSize])
	if n < 4 || int64(n) > int64(limit) {
		return b[0], 0, false, &LengthError{Type: b[0], Length: int64(int32(n)), Max: limit}
	}
	return b[0], int(n) + 1, true, nil
}

// LengthError means that a message announces a length that it cannot have.
type LengthError struct {
	Type   byte
	Length int64 // as a signed 32-bit number, as PostgreSQL reads it
	Max    int
}

func (e *LengthError) Error() string {
	return fmt.Sprintf("bad packet header: message %s announces length %d, allowed is 4 to %d", typeName(e.Type), e.Length, e.Max)
}

func typeName(t byte) string {
	if t > ' ' && t < 0x7f {
		return fmt.Sprintf("'%c'", t)
	}
	return fmt.Sprintf("0x%02x", t)
}

// TypeName renders a message type for people.
func TypeName(t byte) string { return typeName(t) }

// NextString cuts a NUL-terminated string off b.
func NextString(b []byte) (s string, rest []byte, ok bool) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:], true
		}
	}
	return "", b, false
}

// ReadParameterStatus decodes the body (after the header) of a ParameterStatus message.
func ReadParameterStatus(body []byte) (name, value string, ok bool) {
	name, rest, ok := NextString(body)
	if !ok || name == "" {
		return "", "", false
	}
	value, rest, ok = NextString(rest)
	return name, value, ok && len(rest) == 0
}

// ReadRow reads the values of a DataRow as texts; nil is NULL.
func ReadRow(body []byte) (values []*string, ok bool) {
	if len(body) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if n*4 > len(body) {
		return nil, false
	}
	values = make([]*string, n)
	for i := range values {
		if len(body) < 4 {
			return nil, false
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		if size < 0 {
			continue
		}
		if int(size) > len(body) {
			return nil, false
		}
		v := string(body[:size])
		values[i], body = &v, body[size:]
	}
	return values, len(body) == 0
}

// StatementName finds the name of a prepared statement in the body of a Parse, Bind, Describe or Close: body[from:to],
// before its NUL. It is empty for the unnamed one, and where a portal is meant. ok is false while it is not whole.
func StatementName(typ byte, body []byte) (from, to int, ok bool) {
	switch typ {
	case Bind: // behind the portal's name
		i := bytes.IndexByte(body, 0)
		if i < 0 {
			return 0, 0, false
		}
		from = i + 1
	case Describe, Close:
		if len(body) == 0 {
			return 0, 0, false
		}
		if body[0] != 'S' {
			return 1, 1, true
		}
		from = 1
	}
	i := bytes.IndexByte(body[from:], 0)
	return from, from + i, i >= 0
}
