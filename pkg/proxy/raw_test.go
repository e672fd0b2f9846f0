package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// raw is a client that speaks in bytes.
type raw struct {
	t    *testing.T
	conn net.Conn
}

func (p *pooler) raw(t *testing.T) *raw {
	t.Helper()
	conn, err := net.DialTimeout("tcp", p.Addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &raw{t, conn}
}

// send writes each piece by itself. Errors are left to the reader.
func (r *raw) send(pieces ...[]byte) *raw {
	for _, b := range pieces {
		if _, err := r.conn.Write(b); err != nil {
			break
		}
	}
	return r
}

// heard is one message of the other side.
type heard struct {
	kind byte
	body []byte
}

func (r *raw) hear() (heard, error) {
	var header [5]byte
	if _, err := io.ReadFull(r.conn, header[:]); err != nil {
		return heard{}, err
	}
	n := binary.BigEndian.Uint32(header[1:])
	if n < 4 || n > 1<<20 {
		r.t.Fatalf("message %q announces length %d", header[0], n)
	}
	body := make([]byte, n-4)
	if _, err := io.ReadFull(r.conn, body); err != nil {
		r.t.Fatalf("message %q is cut short: %v", header[0], err)
	}
	return heard{header[0], body}, nil
}

// until reads up to a message of the kind and returns it.
func (r *raw) until(kind byte) heard {
	r.t.Helper()
	for {
		m, err := r.hear()
		if err != nil {
			r.t.Fatalf("waiting for message %q: %v", kind, err)
		}
		if m.kind == kind {
			return m
		}
		if m.kind == 'E' {
			e := errorOf(r.t, m)
			r.t.Fatalf("waiting for message %q: %s %s", kind, e.Code, e.Message)
		}
	}
}

// reply reads the one byte that answers a request for encryption.
func (r *raw) reply() byte {
	r.t.Helper()
	var b [1]byte
	if _, err := io.ReadFull(r.conn, b[:]); err != nil {
		r.t.Fatalf("waiting for the answer to a request for encryption: %v", err)
	}
	return b[0]
}

// ending reads to the end and hangs up: the kinds of all messages, and the errors among them.
func (r *raw) ending() (kinds string, errs []*pgproto3.ErrorResponse) {
	r.t.Helper()
	defer func() { _ = r.conn.Close() }()
	for {
		m, err := r.hear()
		if err != nil {
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				r.t.Errorf("the connection was left open")
			}
			return kinds, errs
		}
		kinds += string(m.kind)
		if m.kind == 'E' {
			errs = append(errs, errorOf(r.t, m))
		}
	}
}

func errorOf(t *testing.T, m heard) *pgproto3.ErrorResponse {
	t.Helper()
	var e pgproto3.ErrorResponse
	if err := e.Decode(m.body); err != nil {
		t.Fatalf("an ErrorResponse cannot be read: %v", err)
	}
	return &e
}

// refused expects one FATAL as the connection's last word, and no other error.
func (r *raw) refused(code, message string) {
	r.t.Helper()
	r.refusedAfter("", code, message)
}

// refusedAfter is refused where messages of these kinds may come before.
func (r *raw) refusedAfter(before, code, message string) {
	r.t.Helper()
	kinds, errs := r.ending()
	switch {
	case len(errs) != 1 || strings.Trim(kinds, before) != "E" || !strings.HasSuffix(kinds, "E"):
		r.t.Errorf("got messages %q, want one error at the end", kinds)
	case errs[0].Severity != "FATAL" || errs[0].SeverityUnlocalized != "FATAL":
		r.t.Errorf("severity is %s, want FATAL", errs[0].Severity)
	case errs[0].Code != code || errs[0].Message != message:
		r.t.Errorf("got %s %q\nwant %s %q", errs[0].Code, errs[0].Message, code, message)
	}
}

// dropped expects the connection to end without a word.
func (r *raw) dropped() {
	r.t.Helper()
	if kinds, errs := r.ending(); kinds != "" {
		r.t.Errorf("got messages %q (%+v), want the end of the connection", kinds, errs)
	}
}

// login sends a startup packet of a trusted client and reads the welcome.
func (r *raw) login() *raw {
	r.t.Helper()
	r.send(hello("user", "app", "database", "app")).until('Z')
	return r
}

// untyped builds a first packet: its own length, a code, the body.
func untyped(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

// hello is a startup packet of protocol 3.0 with names and values in turn.
func hello(params ...string) []byte {
	return untyped(3<<16, strings.Join(params, "\x00")+"\x00\x00")
}

// packet is a message with the length that is true.
func packet(kind byte, body string) []byte { return partial(kind, 4+len(body), body) }

// bytewise cuts b into single bytes.
func bytewise(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, 1)) }

const (
	codeSSL    = 80877103
	codeGSS    = 80877104
	codeCancel = 80877102
)

// echo serves like a PostgreSQL without a password whose every query answers with its own text.
func echo(c *pgtest.FakeConn) {
	c.Login()
	echoQueries(c)
}

func echoQueries(c *pgtest.FakeConn) {
	status := byte('I')
	for {
		sql := c.Query()
		switch strings.ToLower(sql) {
		case "begin":
			status = 'T'
		case "commit", "rollback":
			status = 'I'
		}
		c.Columns("echo")
		c.Row(sql)
		c.Complete("SELECT 1")
		c.Ready(status)
	}
}

// pooledFake starts a proxy before a fake server, with settings of the test's.
func pooledFake(t *testing.T, serve func(*pgtest.FakeConn), edit func(*Settings, *Route)) (*pooler, *pgtest.Fake) {
	t.Helper()
	f := pgtest.NewFake(t, serve)
	return startProxy(t, fakeSettings(f, edit)), f
}

// fakeSettings are those before a fake server. edit is called once with a route that does not matter, to change the
// settings, and again for each route.
func fakeSettings(f *pgtest.Fake, edit func(*Settings, *Route)) *Settings {
	if edit == nil {
		edit = func(*Settings, *Route) {}
	}
	set := testSettings("127.0.0.1", f.Port(), func(r *Route) { edit(&Settings{}, r) })
	edit(set, &Route{})
	return set
}

// quiet waits until exactly these clients are left and nothing is lent.
func (p *pooler) quiet(t *testing.T, clients int) {
	t.Helper()
	p.await("quiet", func(s Snapshot) bool { return s.Clients == clients && s.BuffersLent == 0 && s.BytesLent == 0 })
}

// undisturbed asks a query that the echo server or PostgreSQL answers with 7.
func undisturbed(t *testing.T, c *caller) {
	t.Helper()
	if got := c.must("select 7"); got != "7" && got != "select 7" {
		t.Fatalf("a client that has done nothing wrong got %q", got)
	}
}

// heap is what is in use after a collection, in bytes.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
