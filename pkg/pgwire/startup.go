package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Codes of the untyped first packets. Source: PostgreSQL documentation, "Message Formats", and libpq/pqcomm.h.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSSENC = 80877104
)

// MaxStartupSize bounds a first packet, in bytes, as MAX_STARTUP_PACKET_LENGTH of PostgreSQL does.
const MaxStartupSize = 10000

// MaxCancelKey is the longest secret key of protocol 3.2, in bytes.
const MaxCancelKey = 256

// First is what a new client connection says first.
type First interface{ first() }

// SSLRequest asks for TLS; the answer is one byte, S or N.
type SSLRequest struct{}

// GSSENCRequest asks for GSSAPI encryption; the answer is one byte, G or N.
type GSSENCRequest struct{}

// CancelRequest asks to cancel what the session with this key is running. PID and Key come from its BackendKeyData.
type CancelRequest struct {
	PID uint32
	Key []byte // a copy
}

// Startup opens a session.
type Startup struct {
	Major, Minor uint16
	User         string
	Database     string // the user's name when the client gave none
	Replication  string
	Options      string
	// Parameters are the others in the order given, names as the client wrote them; _pq_.* are in ProtocolOptions.
	Parameters      []Parameter
	ProtocolOptions []string
}

// Parameter is a run-time parameter's name and value.
type Parameter struct{ Name, Value string }

func (SSLRequest) first()    {}
func (GSSENCRequest) first() {}
func (CancelRequest) first() {}
func (Startup) first()       {}

// Errors of ReadFirst that a client is told in words of their own.
var (
	// ErrVersion2: a client of protocol 2 (before PostgreSQL 7.4).
	ErrVersion2 = errors.New("old V2 protocol not supported: use a client that speaks protocol 3")
	// ErrNoUser: a startup packet names no user.
	ErrNoUser = errors.New("no PostgreSQL user name specified in startup packet")
)

// ReadFirst reads the first packet in b and says how many bytes it took; 0 means more are needed. It reads nothing
// beyond the packet: bytes that follow are the caller's to judge.
func ReadFirst(b []byte) (First, int, error) {
	if len(b) < 4 {
		return nil, 0, nil
	}
	n := binary.BigEndian.Uint32(b)
	if n < 8 || n > MaxStartupSize {
		return nil, 0, fmt.Errorf("invalid length of startup packet: %d, allowed is 8 to %d", int32(n), MaxStartupSize)
	}
	if len(b) < 8 {
		return nil, 0, nil
	}
	// A code that will be refused is refused before the rest arrives.
	code := binary.BigEndian.Uint32(b[4:])
	switch {
	case code == codeSSL || code == codeGSSENC:
		if n != 8 {
			return nil, 0, fmt.Errorf("invalid length of encryption request: %d, allowed is 8", n)
		}
		if code == codeSSL {
			return SSLRequest{}, 8, nil
		}
		return GSSENCRequest{}, 8, nil
	case code == codeCancel:
		if n < 16 || n > 12+MaxCancelKey {
			return nil, 0, fmt.Errorf("bad cancel request: length is %d, allowed is 16 to %d", n, 12+MaxCancelKey)
		}
	case code>>16 == 2:
		return nil, 0, ErrVersion2
	case code>>16 != 3:
		return nil, 0, fmt.Errorf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", code>>16, code&0xffff)
	}
	if len(b) < int(n) {
		return nil, 0, nil
	}
	body := b[8:n]
	if code == codeCancel {
		return CancelRequest{PID: binary.BigEndian.Uint32(body), Key: bytes.Clone(body[4:])}, int(n), nil
	}
	s, err := readParameters(body)
	if err != nil {
		return nil, 0, err
	}
	s.Major, s.Minor = uint16(code>>16), uint16(code)
	return s, int(n), nil
}

// readParameters reads name/value pairs ended by an empty name, which must be the packet's last byte: anything else
// could be read differently by two readers. Of a name given twice the last one counts, as in PostgreSQL.
func readParameters(b []byte) (Startup, error) {
	var s Startup
	known := map[string]int{} // place in Parameters by lower case: a search for each name would cost milliseconds
	for {
		name, rest, ok := NextString(b)
		if !ok {
			return s, errors.New("invalid startup packet layout: expected a terminator as the last byte")
		}
		if name == "" {
			if len(rest) != 0 {
				return s, errors.New("invalid startup packet layout: expected terminator as last byte")
			}
			break
		}
		value, rest, ok := NextString(rest)
		if !ok {
			return s, errors.New("invalid startup packet layout: a parameter has no value")
		}
		b = rest
		switch {
		case name == "user":
			s.User = value
		case name == "database":
			s.Database = value
		case name == "replication":
			s.Replication = value
		case name == "options":
			s.Options = value
		case strings.HasPrefix(name, "_pq_."):
			s.ProtocolOptions = append(s.ProtocolOptions, name)
		default:
			folded := strings.ToLower(name)
			if i, ok := known[folded]; ok {
				s.Parameters[i].Value = value
				continue
			}
			known[folded] = len(s.Parameters)
			s.Parameters = append(s.Parameters, Parameter{name, value})
		}
	}
	if s.User == "" {
		return s, ErrNoUser
	}
	if s.Database == "" {
		s.Database = s.User
	}
	return s, nil
}

// AppendStartup writes a protocol 3.0 startup packet.
func AppendStartup(dst []byte, parameters []Parameter) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, 3<<16)
	for _, p := range parameters {
		dst = append(append(dst, p.Name...), 0)
		dst = append(append(dst, p.Value...), 0)
	}
	dst = append(dst, 0)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

// AppendCancel writes a CancelRequest.
func AppendCancel(dst []byte, pid uint32, key []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(12+len(key)))
	dst = binary.BigEndian.AppendUint32(dst, codeCancel)
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return append(dst, key...)
}

// ParseOptions splits the startup parameter "options" as PgBouncer does: "-c name=value", "-cname=value" and
// "--name=value", blanks separate, a backslash escapes. Anything else is an error.
func ParseOptions(options string) ([]Parameter, error) {
	var params []Parameter
	words := splitOptions(options)
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case w == "-c":
			i++
			if i == len(words) {
				return nil, errors.New("unsupported startup parameter in options: -c has no setting")
			}
			w = words[i]
		case strings.HasPrefix(w, "-c"), strings.HasPrefix(w, "--"):
			w = w[2:]
		default:
			return nil, fmt.Errorf("unsupported startup parameter in options: %q, allowed are -c name=value and --name=value", clip(w))
		}
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("unsupported startup parameter in options: %q is not name=value", clip(w))
		}
		params = append(params, Parameter{strings.ReplaceAll(name, "-", "_"), value})
	}
	return params, nil
}

func splitOptions(s string) []string {
	var (
		words []string
		word  []byte
		in    bool
	)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\\':
			// One at the end escapes nothing.
			in = true
			if i++; i < len(s) {
				word = append(word, s[i])
			}
		case ' ', '\t', '\n', '\r', '\f', '\v':
			if in {
				words = append(words, string(word))
			}
			word, in = word[:0], false
		default:
			word, in = append(word, c), true
		}
	}
	if in {
		words = append(words, string(word))
	}
	return words
}

// clip keeps hostile names from filling logs and errors.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
