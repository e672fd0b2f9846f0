package pgwire

import (
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Severity of an error: FATAL ends the connection.
const (
	Fatal = "FATAL"
	Error = "ERROR"
)

// AppendError writes an ErrorResponse with PostgreSQL's fields; code is an SQLSTATE.
func AppendError(dst []byte, severity, code, message string) []byte {
	m := pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: code, Message: message}
	return encode(dst, &m)
}

// AppendErrorHint is AppendError with a hint.
func AppendErrorHint(dst []byte, severity, code, message, hint string) []byte {
	m := pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: code, Message: message, Hint: hint}
	return encode(dst, &m)
}

// AppendNotice writes a NoticeResponse.
func AppendNotice(dst []byte, message string) []byte {
	m := pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: message}
	return encode(dst, &m)
}

// AppendQuery writes a simple Query.
func AppendQuery(dst []byte, sql string) []byte { return encode(dst, &pgproto3.Query{String: sql}) }

// AppendParse writes a Parse; rest is what follows the name.
func AppendParse(dst []byte, name, rest string) []byte {
	dst = append(dst, Parse)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(name)+1+len(rest)))
	dst = append(append(dst, name...), 0)
	return append(dst, rest...)
}

// AppendCloseStatement writes a Close of a prepared statement.
func AppendCloseStatement(dst []byte, name string) []byte {
	dst = append(dst, Close)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+1+len(name)+1))
	dst = append(dst, 'S')
	return append(append(dst, name...), 0)
}

// AppendRenamed writes the header of a message of type typ and its body up to what follows the name at body[from:to],
// which is replaced. size is the whole message's, as Header tells; body may be its beginning only.
func AppendRenamed(dst []byte, typ byte, size int, body []byte, from, to int, name string) []byte {
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(size-1-(to-from)+len(name)))
	dst = append(dst, body[:from]...)
	dst = append(dst, name...)
	return append(dst, body[to:]...)
}

// AppendEmpty writes a message without a body, as ParseComplete and CloseComplete are.
func AppendEmpty(dst []byte, typ byte) []byte { return append(dst, typ, 0, 0, 0, 4) }

// AppendCommandComplete writes a CommandComplete.
func AppendCommandComplete(dst []byte, tag string) []byte {
	dst = append(dst, CommandComplete)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(tag)+1))
	return append(append(dst, tag...), 0)
}

// AppendSync writes a Sync.
func AppendSync(dst []byte) []byte { return append(dst, Sync, 0, 0, 0, 4) }

// AppendFlush writes a Flush.
func AppendFlush(dst []byte) []byte { return append(dst, Flush, 0, 0, 0, 4) }

// AppendTerminate writes a Terminate.
func AppendTerminate(dst []byte) []byte { return append(dst, Terminate, 0, 0, 0, 4) }

// AppendCopyFail writes a CopyFail.
func AppendCopyFail(dst []byte, reason string) []byte {
	return encode(dst, &pgproto3.CopyFail{Message: reason})
}

// AppendReady writes a ReadyForQuery.
func AppendReady(dst []byte, status byte) []byte {
	return append(dst, ReadyForQuery, 0, 0, 0, 5, status)
}

// AppendSSLRequest writes the request for TLS.
func AppendSSLRequest(dst []byte) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0, 0, 0, 8), codeSSL)
}

// AppendAuth writes an Authentication message: its code and what follows it.
func AppendAuth(dst []byte, code uint32, data []byte) []byte {
	dst = append(dst, Authentication)
	dst = binary.BigEndian.AppendUint32(dst, uint32(8+len(data)))
	dst = binary.BigEndian.AppendUint32(dst, code)
	return append(dst, data...)
}

// Codes of Authentication messages.
const (
	AuthOK           = 0
	AuthCleartext    = 3
	AuthMD5          = 5
	AuthSASL         = 10
	AuthSASLContinue = 11
	AuthSASLFinal    = 12
)

// AppendParameterStatus writes a ParameterStatus.
func AppendParameterStatus(dst []byte, name, value string) []byte {
	dst = append(dst, ParameterStatus)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(name)+1+len(value)+1))
	dst = append(append(dst, name...), 0)
	return append(append(dst, value...), 0)
}

// AppendBackendKey writes a BackendKeyData.
func AppendBackendKey(dst []byte, pid uint32, key []byte) []byte {
	dst = append(dst, BackendKeyData)
	dst = binary.BigEndian.AppendUint32(dst, uint32(8+len(key)))
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return append(dst, key...)
}

// AppendNegotiate tells a client that asked for more which protocol version is spoken and which options are not known.
// Servers say the whole version, although the documentation speaks of the minor one alone.
func AppendNegotiate(dst []byte, minor uint32, unknown []string) []byte {
	size := 12
	for _, o := range unknown {
		size += len(o) + 1
	}
	dst = append(dst, NegotiateProtocol)
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = binary.BigEndian.AppendUint32(dst, 3<<16|minor)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(unknown)))
	for _, o := range unknown {
		dst = append(append(dst, o...), 0)
	}
	return dst
}

// AppendPassword writes a PasswordMessage, SASLInitialResponse or SASLResponse around the body.
func AppendPassword(dst, body []byte) []byte {
	dst = append(dst, Password)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(body)))
	return append(dst, body...)
}

// ErrorFields are the parts of an ErrorResponse that a pooler acts on. A field that is missing is empty: a server is
// not trusted to send any.
type ErrorFields struct{ Severity, Code, Message string }

// ReadError decodes the body of an ErrorResponse or NoticeResponse; what cannot be read is left out.
func ReadError(body []byte) ErrorFields {
	var f ErrorFields
	for len(body) > 0 && body[0] != 0 {
		kind := body[0]
		value, rest, ok := NextString(body[1:])
		if !ok {
			break
		}
		body = rest
		switch kind {
		case 'V':
			f.Severity = value
		case 'S':
			if f.Severity == "" {
				f.Severity = value
			}
		case 'C':
			f.Code = value
		case 'M':
			f.Message = value
		}
	}
	return f
}

// encode cannot fail: pgproto3 only refuses messages above a gigabyte, and these are short.
func encode(dst []byte, m interface{ Encode([]byte) ([]byte, error) }) []byte {
	out, err := m.Encode(dst)
	if err != nil {
		panic("pgwire: cannot encode a control message: " + err.Error())
	}
	return out
}
