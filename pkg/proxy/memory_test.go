package proxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// exchange is one round trip as bytes: a client says request, the server answers reply.
type exchange struct{ request, reply []byte }

func exchangeOf(t *testing.T, request []pgproto3.FrontendMessage, reply ...pgproto3.BackendMessage) exchange {
	t.Helper()
	e := exchange{request: encoded(t, request...)}
	for _, m := range reply {
		var err error
		if e.reply, err = m.Encode(e.reply); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// parrot is a server that logs everybody in and then answers by number of bytes, so that it allocates nothing itself.
type parrot struct {
	net.Listener
	transaction []exchange
	ended       sync.WaitGroup
}

func newParrot(t *testing.T, transaction []exchange) *parrot {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &parrot{Listener: l, transaction: transaction}
	p.ended.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.ended.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); p.ended.Wait() })
	return p
}

func (p *parrot) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 64<<10)
	if _, err := io.ReadFull(conn, buf[:4]); err != nil {
		return
	}
	if _, err := io.ReadFull(conn, buf[:binary.BigEndian.Uint32(buf)-4]); err != nil {
		return
	}
	welcome, _ := (&pgproto3.AuthenticationOk{}).Encode(nil)
	welcome, _ = (&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"}).Encode(welcome)
	welcome, _ = (&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}}).Encode(welcome)
	welcome, _ = (&pgproto3.ReadyForQuery{TxStatus: 'I'}).Encode(welcome)
	for reply := welcome; ; {
		if _, err := conn.Write(reply); err != nil {
			return
		}
		e := &p.transaction[0]
		for i := range p.transaction {
			e = &p.transaction[i]
			if i == len(p.transaction)-1 {
				break
			}
			if _, err := io.ReadFull(conn, buf[:len(e.request)]); err != nil {
				return
			}
			if _, err := conn.Write(e.reply); err != nil {
				return
			}
		}
		if _, err := io.ReadFull(conn, buf[:len(e.request)]); err != nil {
			return
		}
		reply = e.reply
	}
}

// repeat does a transaction n times on a logged-in client.
func (p *parrot) repeat(conn net.Conn, buf []byte, n int) error {
	for range n {
		for i := range p.transaction {
			e := &p.transaction[i]
			if _, err := conn.Write(e.request); err != nil {
				return err
			}
			if _, err := io.ReadFull(conn, buf[:len(e.reply)]); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestARelayedTransactionAllocatesNothing(t *testing.T) {
	ready := func(status byte) pgproto3.BackendMessage { return &pgproto3.ReadyForQuery{TxStatus: status} }
	complete := &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}
	columns := &pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("answer")}}}
	row := &pgproto3.DataRow{Values: [][]byte{[]byte("forty-two")}}
	long := &pgproto3.DataRow{Values: [][]byte{make([]byte, 50<<10)}}
	ask := func(sql string) []pgproto3.FrontendMessage {
		return []pgproto3.FrontendMessage{&pgproto3.Query{String: sql}}
	}
	extended := []pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "select $1"}, &pgproto3.Bind{Parameters: [][]byte{[]byte("42")}}, &pgproto3.Describe{ObjectType: 'P'},
		&pgproto3.Execute{}, &pgproto3.Sync{},
	}
	answers := []pgproto3.BackendMessage{&pgproto3.ParseComplete{}, &pgproto3.BindComplete{}, columns, row, complete}
	for name, transaction := range map[string][]exchange{
		"a simple query":    {exchangeOf(t, ask("select 42"), columns, row, complete, ready('I'))},
		"an extended query": {exchangeOf(t, extended, append(answers, ready('I'))...)},
		"a long answer":     {exchangeOf(t, ask("select long"), columns, long, long, long, complete, ready('I'))},
		"a long question":   {exchangeOf(t, ask(strings.Repeat("x", 60<<10)), complete, ready('I'))},
		"a failing query":   {exchangeOf(t, ask("nonsense"), &pgproto3.ErrorResponse{Severity: "ERROR", Code: "42601"}, ready('I'))},
		"a transaction of several round trips": {
			exchangeOf(t, ask("begin"), complete, ready('T')), exchangeOf(t, extended, append(answers, ready('T'))...),
			exchangeOf(t, ask("commit"), complete, ready('I')),
		},
	} {
		for clients, servers := range map[int]int{1: 1, 8: 3} {
			for _, mode := range []pool.Mode{pool.Transaction, pool.Session} {
				t.Run(fmt.Sprintf("%s, %d clients, %v mode", name, clients, mode), func(t *testing.T) {
					server := newParrot(t, transaction)
					addr := server.Addr().(*net.TCPAddr)
					p := startProxy(t, testSettings("127.0.0.1", addr.Port, func(r *Route) {
						r.Pool.Size, r.Pool.Mode = servers, mode
						if mode == pool.Session {
							r.Pool.Size = clients
						}
					}))
					start, done := make(chan int), make(chan error, clients)
					for range clients {
						c := p.call()
						buf := make([]byte, 256<<10)
						_ = c.conn.SetDeadline(unlimited)
						go func() {
							for n := range start {
								done <- server.repeat(c.conn, buf, n)
							}
						}()
					}
					defer close(start)
					work := func(n int) {
						for range clients {
							start <- n / clients
						}
						for range clients {
							if err := <-done; err != nil {
								t.Fatal(err)
							}
						}
					}
					const warm, many = 200, 1000
					work(warm)
					// A few come from the runtime and from the clock, however many transactions there are, and sometimes some
					// from what earlier tests left behind: what a transaction costs comes each time.
					least := uint64(many)
					for range 3 {
						var before, after runtime.MemStats
						runtime.ReadMemStats(&before)
						work(many)
						runtime.ReadMemStats(&after)
						if least = min(least, after.Mallocs-before.Mallocs); least <= many/20 {
							break
						}
					}
					if least > many/20 {
						t.Errorf("%d transactions made %d allocations", many, least)
					}
					if s := p.state(); s.BuffersLent != 0 || s.BytesLent != 0 {
						t.Errorf("%d buffers of %d bytes are lent when nothing is pending", s.BuffersLent, s.BytesLent)
					}
				})
			}
		}
	}
}

// S63, M17
func TestAHundredMegabytesPassThroughLittleMemory(t *testing.T) {
	const size = 100 << 20
	p := pooledPostgres(t, nil)
	emptyTable(t, pgtest.Shared(t), "swallowed")
	c := p.call()
	buf := make([]byte, 64<<10)
	for name, ask := range map[string]func(){
		"many rows": func() { c.send(&pgproto3.Query{String: "select repeat('x', 1000) from generate_series(1, 105000)"}) },
		"one row":   func() { c.send(&pgproto3.Query{String: "select repeat('x', 105000000)"}) },
		"copy in, then nothing": func() {
			c.send(&pgproto3.Query{String: "copy swallowed from stdin where x > 0"})
			until[*pgproto3.CopyInResponse](c)
			frame := encoded(t, &pgproto3.CopyData{Data: []byte(strings.Repeat("0\n", 30000))})
			for sent := 0; sent < size; sent += len(frame) {
				c.raw(frame)
			}
			c.send(&pgproto3.CopyDone{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			ask()
			_ = c.conn.SetReadDeadline(unlimited)
			received, most := 0, uint64(0)
			for reads, end := 0, false; !end; reads++ {
				n, err := c.conn.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				received += n
				// The answer ends with this and nothing else does: the values are all x.
				end = n >= 6 && string(buf[n-6:n]) == "Z\x00\x00\x00\x05I"
				if reads%32 == 0 {
					runtime.ReadMemStats(&now)
					most = max(most, now.HeapAlloc)
				}
			}
			s := p.state()
			if moved := s.Pools[0].Counts.BytesSent + s.Pools[0].Counts.BytesReceived; moved < size {
				t.Fatalf("only %d bytes have passed", moved)
			}
			if grown := int64(most) - int64(before.HeapAlloc); grown > 4<<20 {
				t.Errorf("the heap has grown by %d KiB while %d bytes came back", grown>>10, received)
			}
			if s.BuffersLent != 0 || s.BytesLent != 0 {
				t.Errorf("%d buffers of %d bytes are lent when nothing is pending", s.BuffersLent, s.BytesLent)
			}
		})
	}
}

func TestAnIdleClientCostsLittleMemory(t *testing.T) {
	const many = 5000
	p := pooledPostgres(t, nil)
	p.call().must("select 1")
	startup := encoded(t, &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{
		"user": "app", "database": "app", "application_name": "idle",
	}})
	addr := p.Addrs()[0].(*net.TCPAddr)
	query := encoded(t, &pgproto3.Query{String: "select 1"})
	before := heap()
	// Bare descriptors, so that the clients' own part does not count.
	fds := make([]int, 0, many)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	buf := make([]byte, 4096)
	readReady := func(fd int) {
		t.Helper()
		for got := 0; ; {
			n, err := unix.Read(fd, buf[got:])
			if err != nil || n == 0 {
				t.Fatalf("after %q: %d, %v", buf[:got], n, err)
			}
			if got += n; got >= 6 && buf[got-6] == 'Z' {
				return
			}
		}
	}
	for range many {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, startup); err != nil {
			t.Fatal(err)
		}
		readReady(fd)
	}
	each := (int64(heap()) - int64(before)) / many
	t.Logf("%d bytes of heap for each idle client", each)
	if each > 1000 {
		t.Errorf("an idle client costs %d bytes of heap, allowed are 1000", each)
	}
	for _, fd := range fds {
		if _, err := unix.Write(fd, query); err != nil {
			t.Fatal(err)
		}
	}
	for _, fd := range fds {
		readReady(fd)
	}
	if s := p.state(); s.BuffersLent != 0 || s.Clients != many+1 {
		t.Errorf("%d clients hold %d buffers", s.Clients, s.BuffersLent)
	}
	if used := (int64(heap()) - int64(before)) / many; used > 1200 {
		t.Errorf("an idle client that has worked costs %d bytes of heap, allowed are 1200", used)
	}
}

var unlimited time.Time // as a deadline: none
