package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/scram"
)

// dial connects to a server and logs in, the way its TLS mode says. It blocks; ctx and the spec's timeout end it. Errors
// of the server are *LoginError.
func dial(ctx context.Context, spec dialSpec) (*dialed, error) {
	plain := spec.tls == nil || spec.tls.mode == TLSAllow
	began := time.Now()
	d, err := dialOnce(ctx, spec, !plain)
	// A pg_hba.conf without a line for connections in clear.
	if le := (*LoginError)(nil); plain && spec.tls != nil && errors.As(err, &le) && le.Code == "28000" {
		if spec.timeout > 0 {
			spec.timeout = max(spec.timeout-time.Since(began), time.Millisecond)
		}
		return dialOnce(ctx, spec, true)
	}
	return d, err
}

// encrypt asks the server for TLS. All further bytes of the login go through it.
func (l *serverLogin) encrypt() error {
	s, err := l.spec.tls.begin(l.conn, l.spec.host)
	if s == nil || err != nil {
		return err
	}
	l.conn = s.conn
	l.out.tls = s
	l.out.secure = cancelTLS{l.spec.tls, l.spec.host}
	l.endPoint = endPoint(s.conn.ConnectionState().PeerCertificates[0])
	return nil
}

// begin asks a server for TLS and shakes hands; nil and no error when the server has none, nor the mode demands it. It
// blocks; the connection's deadline ends it.
func (t *ServerTLS) begin(conn net.Conn, host string) (*secured, error) {
	if _, err := conn.Write(pgwire.AppendSSLRequest(nil)); err != nil {
		return nil, fmt.Errorf("connect failed: %w", err)
	}
	var answer [16]byte
	n, err := conn.Read(answer[:])
	switch {
	case n == 0:
		return nil, fmt.Errorf("server closed the connection when asked for TLS: %w", err)
	case answer[0] == 'E':
		// Nothing proves that its words are the server's own, so nobody is told them.
		return nil, errors.New("server answered the request for TLS with an error")
	case answer[0] != 'S' && answer[0] != 'N':
		return nil, fmt.Errorf("server answered the request for TLS with byte 0x%02x, allowed are S and N", answer[0])
	case n > 1:
		// Somebody may have injected them; read before the handshake, they would be taken for the server's.
		return nil, errors.New("server sent unencrypted data behind its answer to the request for TLS")
	case answer[0] == 'N' && t.mode >= TLSRequire:
		return nil, fmt.Errorf("server does not offer TLS, which server_tls_sslmode = %v demands", t.mode)
	case answer[0] == 'N':
		return nil, nil
	}
	s := &secured{blocking: conn}
	s.conn = tls.Client((*cipherSide)(s), t.config(host))
	if err := s.conn.Handshake(); err != nil {
		return nil, fmt.Errorf("TLS handshake with the server failed: %w", err)
	}
	return s, nil
}

// bind ties the SCRAM exchange to the TLS connection, if both sides can, and names the mechanism. offered: the server
// has offered it.
func (l *serverLogin) bind(offered bool) (mechanism string) {
	switch {
	case l.endPoint == nil:
	case offered:
		l.scram.BindServerEndPoint(l.endPoint)
		return scram.MechanismPlus
	default:
		l.scram.BindingNotOffered()
	}
	return scram.Mechanism
}

// cancelTLS is how cancel requests are protected: as the connection is that they are for. Nothing is done without TLS.
type cancelTLS struct {
	tls  *ServerTLS
	host string
}

func (c cancelTLS) encrypt(conn net.Conn) (net.Conn, error) {
	if c.tls == nil {
		return conn, nil
	}
	s, err := c.tls.begin(conn, c.host)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return conn, nil
	}
	return s.conn, nil
}
