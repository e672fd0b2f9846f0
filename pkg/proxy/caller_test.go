package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// patience bounds every wait for something that should come.
const patience = 30 * time.Second

// caller is a client that speaks the protocol message by message.
type caller struct {
	t    *testing.T
	addr string
	conn *net.TCPConn
	fe   *pgproto3.Frontend

	params map[string]string // by ParameterStatus
	pid    uint32
	key    []byte
}

// reply is everything up to a ReadyForQuery.
type reply struct {
	rows   [][]string
	tags   []string
	err    *pgproto3.ErrorResponse // the first one
	status byte                    // 0: the connection ended first
}

// value is a column of the first row, "" if there is none.
func (r reply) value(column int) string {
	if len(r.rows) == 0 || len(r.rows[0]) <= column {
		return ""
	}
	return r.rows[0][column]
}

// emptyTable makes a table of integers x.
func emptyTable(t *testing.T, s *pgtest.Server, name string) {
	t.Helper()
	if err := s.Exec(t.Context(), "drop table if exists "+name+"; create table "+name+" (x int)"); err != nil {
		t.Fatal(err)
	}
}

// call logs in through the proxy, with startup parameters as name and value in turn.
func (p *pooler) call(params ...string) *caller {
	p.t.Helper()
	return callAt(p.t, p.Addr, params...)
}

func callAt(t *testing.T, addr string, params ...string) *caller {
	t.Helper()
	c, err := tryCall(t, addr, params...)
	if err != nil {
		t.Fatalf("login at %s: %v", addr, err)
	}
	return c
}

// protocol32, as the first parameter of a call, asks for protocol 3.2.
const protocol32 = "protocol 3.2"

func tryCall(t *testing.T, addr string, params ...string) (*caller, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &caller{t: t, addr: addr, conn: conn.(*net.TCPConn), fe: pgproto3.NewFrontend(conn, conn), params: map[string]string{}}
	m := &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": pgtest.User, "database": "app"}}
	if len(params) > 0 && params[0] == protocol32 {
		m.ProtocolVersion = 3<<16 | 2
		params = params[1:]
	}
	for i := 0; i < len(params); i += 2 {
		m.Parameters[params[i]] = params[i+1]
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	c.send(m)
	r := c.reply()
	if r.status != 'I' {
		return nil, fmt.Errorf("login was answered by %+v", r.err)
	}
	return c, nil
}

// send writes messages in one piece. Errors are left to the reader.
func (c *caller) send(messages ...pgproto3.FrontendMessage) { c.raw(encoded(c.t, messages...)) }

func encoded(t *testing.T, messages ...pgproto3.FrontendMessage) []byte {
	t.Helper()
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (c *caller) raw(b []byte) {
	_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
	_, _ = c.conn.Write(b)
}

// receive reads one message; nil is the end of the connection.
func (c *caller) receive() pgproto3.BackendMessage {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	m, err := c.fe.Receive()
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			c.t.Errorf("nothing came within %v", patience)
		}
		return nil
	}
	switch m := m.(type) {
	case *pgproto3.ParameterStatus:
		c.params[m.Name] = m.Value
	case *pgproto3.BackendKeyData:
		c.pid, c.key = m.ProcessID, slices.Clone(m.SecretKey)
	}
	return m
}

// reply reads up to ReadyForQuery or the end.
func (c *caller) reply() reply {
	c.t.Helper()
	var r reply
	for {
		switch m := c.receive().(type) {
		case nil:
			return r
		case *pgproto3.DataRow:
			r.rows = append(r.rows, texts(m))
		case *pgproto3.CommandComplete:
			r.tags = append(r.tags, string(m.CommandTag))
		case *pgproto3.ErrorResponse:
			if r.err == nil {
				e := *m
				r.err = &e
			}
		case *pgproto3.ReadyForQuery:
			r.status = m.TxStatus
			return r
		}
	}
}

func texts(m *pgproto3.DataRow) []string {
	row := make([]string, len(m.Values))
	for i, v := range m.Values {
		row[i] = string(v)
	}
	return row
}

// ask sends a Query and reads its answer.
func (c *caller) ask(sql string) reply {
	c.t.Helper()
	c.send(&pgproto3.Query{String: sql})
	return c.reply()
}

// must is ask for what cannot fail; it returns the first value.
func (c *caller) must(sql string) string {
	c.t.Helper()
	r := c.ask(sql)
	if r.err != nil || r.status == 0 {
		c.t.Fatalf("%s: %+v, status %q", sql, r.err, r.status)
	}
	return r.value(0)
}

// until reads up to a message of the same type as what.
func until[M pgproto3.BackendMessage](c *caller) M {
	c.t.Helper()
	for {
		switch m := c.receive().(type) {
		case M:
			return m
		case nil:
			c.t.Fatalf("the connection ended before a %T came", *new(M))
		case *pgproto3.ErrorResponse:
			c.t.Fatalf("waiting for %T: %s %s: %s", *new(M), m.Severity, m.Code, m.Message)
		}
	}
}

// fatal reads up to the end and returns the first error, which must be there.
func (c *caller) fatal() *pgproto3.ErrorResponse {
	c.t.Helper()
	for {
		r := c.reply()
		if r.err != nil {
			for c.reply().status != 0 {
			}
			return r.err
		}
		if r.status == 0 {
			c.t.Fatal("the connection ended without an error")
		}
	}
}

// departures are the ways in which a client goes.
var departures = map[string]func(*caller){
	"by Terminate": func(c *caller) { c.send(&pgproto3.Terminate{}); _ = c.conn.Close() },
	"by FIN":       func(c *caller) { _ = c.conn.Close() },
	"by RST":       func(c *caller) { _ = c.conn.SetLinger(0); _ = c.conn.Close() },
}

// cancel asks to cancel what c runs and waits until the other side has closed.
func (c *caller) cancel() error { return requestCancel(c.addr, c.pid, c.key) }

func requestCancel(addr string, pid uint32, key []byte) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	b, err := (&pgproto3.CancelRequest{ProcessID: pid, SecretKey: key}).Encode(nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if n > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("a cancel request was answered by %d bytes: %w", n, err)
	}
	return nil
}

// partial is the beginning of a message that announces size bytes after its type.
func partial(kind byte, size int, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(size)), body...)
}
