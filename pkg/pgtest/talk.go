package pgtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Target is a server that conversations are held with.
type Target struct {
	Name     string // "postgres" for PostgreSQL itself, which -rewrite believes, or "sidecar"
	Network  string // "tcp" if empty, or "unix"
	Addr     string
	User     string
	Password string // given when asked for in clear
	Database string // its schema public is dropped and created again
	Session  bool   // a client keeps its backend; always true of PostgreSQL itself
	Backends int    // conversations of more clients are not held; 0: any number
	Aside    string // where setup and await are said if not at Addr: what has few backends has none to spare for them

	patience time.Duration // how long an answer may take, 30 s if zero
}

// talker is one client's connection in a conversation.
type talker struct {
	conn   net.Conn
	limit  time.Duration // how long an answer may take
	r      *bufio.Reader
	queue  []byte
	writer chan struct{} // closed when the last write is done; nil before the first

	params map[string]string // by ParameterStatus
	pid    uint32
	key    []byte
	ready  bool // the first ReadyForQuery was seen
}

func (target Target) dial(ctx context.Context) (*talker, error) {
	network := target.Network
	if network == "" {
		network = "tcp"
	}
	limit := target.patience
	if limit == 0 {
		limit = patience
	}
	d := net.Dialer{Timeout: limit}
	conn, err := d.DialContext(ctx, network, target.Addr)
	if err != nil {
		return nil, err
	}
	return &talker{conn: conn, limit: limit, r: bufio.NewReader(conn), params: map[string]string{}}, nil
}

// startup is a startup message with the target's user and database, unless params say otherwise.
func (target Target) startup(params map[string]string) ([]byte, error) {
	m := pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{
		"user": target.User, "database": target.Database,
	}}
	maps.Copy(m.Parameters, params)
	return m.Encode(nil)
}

// login connects and reads up to ReadyForQuery.
func (target Target) login(ctx context.Context, params map[string]string) (*talker, error) {
	t, err := target.dial(ctx)
	if err != nil {
		return nil, err
	}
	if t.queue, err = target.startup(params); err != nil {
		t.conn.Close()
		return nil, err
	}
	got, err := t.until("ReadyForQuery", 1, target.Password)
	if err == nil && !t.ready {
		err = fmt.Errorf("login failed: %s", strings.Join(got, "\n"))
	}
	if err != nil {
		t.conn.Close()
		return nil, err
	}
	return t, nil
}

// aside logs in for what surrounds a dialogue.
func (target Target) aside(ctx context.Context) (*talker, error) {
	if target.Aside != "" {
		target.Addr, target.Network = target.Aside, "tcp"
	}
	return target.login(ctx, nil)
}

// write begins to write what is queued. It does not wait, so that a server which answers before it has read everything
// does not wait for us either. Errors are left to the reader, which sees that the connection is closed.
func (t *talker) write() {
	if len(t.queue) == 0 {
		return
	}
	b, before, done := t.queue, t.writer, make(chan struct{})
	t.queue, t.writer = nil, done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		t.conn.SetWriteDeadline(time.Now().Add(t.limit))
		_, _ = t.conn.Write(b)
	}()
}

// close waits for what is being written, unless the connection is gone.
func (t *talker) close() {
	t.conn.Close()
	if t.writer != nil {
		<-t.writer
	}
}

// halfclose says that nothing more will come.
func (t *talker) halfclose() error {
	t.write()
	if t.writer != nil {
		<-t.writer
	}
	half, ok := t.conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("this connection cannot be closed for writing alone")
	}
	return half.CloseWrite()
}

// closedLine stands in a transcript for the end of the connection.
const closedLine = "closed"

// until writes what is queued and reads up to the n-th message called what, or to the end of the connection, which ends
// every transcript. Asked for a password in clear it gives the one it has, if any.
func (t *talker) until(what string, n int, password string) (transcript []string, err error) {
	t.write()
	t.conn.SetReadDeadline(time.Now().Add(t.limit))
	if what == "byte" {
		b, err := t.r.ReadByte()
		if err != nil {
			return []string{closedLine}, ignoreClosed(err)
		}
		return []string{fmt.Sprintf("byte %c", b)}, nil
	}
	for {
		kind, body, err := t.frame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return transcript, fmt.Errorf("after %v still waiting for %s, got so far:\n%s", t.limit, what, strings.Join(shorten(transcript), "\n"))
		}
		if err != nil {
			transcript = append(transcript, closedLine)
			return shorten(transcript), ignoreClosed(err)
		}
		line := render(kind, body)
		name, _, _ := strings.Cut(line, " ")
		t.learn(kind, body)
		if kind != 'S' || t.ready {
			transcript = append(transcript, line)
		}
		if name == "AuthenticationCleartextPassword" && password != "" {
			t.queue, _ = (&pgproto3.PasswordMessage{Password: password}).Encode(nil)
			t.write()
		}
		if name == what {
			n--
		}
		if n == 0 {
			return shorten(transcript), nil
		}
	}
}

// ignoreClosed is nil for any way in which the other side closes a connection, also within a message, which says so.
func ignoreClosed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "reset by peer") {
		return nil
	}
	return err
}

// maxFrame bounds a message's length: more is a broken peer.
const maxFrame = 64 << 20

func (t *talker) frame() (kind byte, body []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(t.r, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length < 4 || length > maxFrame {
		return 0, nil, fmt.Errorf("message %q has a length of %d", header[0], int32(length))
	}
	body = make([]byte, length-4)
	if _, err := io.ReadFull(t.r, body); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the connection was closed within message %q", header[0])
		}
		return 0, nil, err
	}
	return header[0], body, nil
}

// learn keeps what later lines need.
func (t *talker) learn(kind byte, body []byte) {
	switch kind {
	case 'Z':
		t.ready = true
	case 'S':
		var m pgproto3.ParameterStatus
		if m.Decode(body) == nil {
			t.params[m.Name] = m.Value
		}
	case 'K':
		var m pgproto3.BackendKeyData
		if m.Decode(body) == nil {
			t.pid, t.key = m.ProcessID, m.SecretKey
		}
	}
}

// query runs SQL and returns the first value, for what surrounds a dialogue.
func (t *talker) query(sql string) (string, error) {
	t.conn.SetDeadline(time.Now().Add(t.limit))
	f := pgproto3.NewFrontend(t.r, t.conn)
	f.Send(&pgproto3.Query{String: sql})
	rows, err := collect(f)
	if err != nil {
		return "", fmt.Errorf("%w, in: %s", err, sql)
	}
	if len(rows) == 0 || len(rows[0]) == 0 {
		return "", nil
	}
	return rows[0][0], nil
}
