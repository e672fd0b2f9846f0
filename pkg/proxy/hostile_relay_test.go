package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// Attacks on the relay by clients that are logged in.

// S62
func TestHostileMessagesAfterTheLogin(t *testing.T) {
	pgtest.CheckLeaks(t)
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, func(r *Route) { r.Pool.Size = 2 })
	set.MaxPacketSize = 1 << 20
	p := startProxy(t, set)
	bystander := p.call()
	undisturbed(t, bystander)

	length := func(kind string, n int) string {
		return fmt.Sprintf("bad packet header: message %s announces length %d, allowed is 4 to 1048576", kind, n)
	}
	cases := []struct {
		attack string
		bytes  []byte
		want   string
	}{
		{"a type that does not exist", packet('z', ""), "invalid frontend message type 'z'"},
		{"type 0", make([]byte, 10), length("0x00", 0)},
		{"a message only servers say", packet('Z', "I"), "invalid frontend message type 'Z'"},
		{"rows from a client", packet('T', "\x00\x00"), "invalid frontend message type 'T'"},
		{"a password nobody asked for", packet('p', "secret\x00"), "invalid frontend message type 'p'"},
		{"another startup packet", hello("user", "app"), "invalid frontend message type 0x00"},
		{"length 0", partial('Q', 0, "select 1\x00"), length("'Q'", 0)},
		{"length 3", partial('S', 3, ""), length("'S'", 3)},
		{"length -1", partial('Q', -1, "select 1\x00"), length("'Q'", -1)},
		{"the most negative length", partial('P', -1<<31, ""), length("'P'", -1<<31)},
		{"one byte more than allowed", partial('Q', 1<<20+1, ""), length("'Q'", 1<<20+1)},
		{"the largest length", partial('d', 1<<31-1, ""), length("'d'", 1<<31-1)},
		{"text", []byte("hello, world\r\n"), length("'h'", 1701604463)},
	}
	states := []struct {
		name   string
		before []byte
		kinds  string // of what comes before the refusal
	}{
		{"at once", nil, ""},
		{"in a transaction", packet('Q', "begin; create temp table attacked (x int)\x00"), ""},
		{"in a batch", append(packet('P', "\x00select 1\x00\x00\x00"), packet('B', "\x00\x00\x00\x00\x00\x00\x00\x00")...), ""},
		{"in COPY", packet('Q', "begin; create temp table attacked (x int); copy attacked from stdin\x00"), ""},
	}
	for _, c := range cases {
		for _, state := range states {
			t.Run(c.attack+" "+state.name, func(t *testing.T) {
				r := p.raw(t).login()
				switch {
				case strings.Contains(state.name, "COPY"):
					r.send(state.before).until('G')
				case strings.Contains(state.name, "transaction"):
					r.send(state.before).until('Z')
				case state.before != nil:
					r.send(state.before, packet('H', "")).until('2')
				}
				r.send(c.bytes).refused("08P01", c.want)
				undisturbed(t, bystander)
			})
		}
	}
	p.quiet(t, 1)
	// What they had open was rolled back, and the server connections live on.
	p.await("both server connections are idle", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == s.Servers })
	if st := p.state(); st.Servers > 2 || st.Pools[0].Stats.Opened > 2 {
		t.Errorf("%d server connections were opened for attacks that cost a ROLLBACK each", st.Pools[0].Stats.Opened)
	}
	if got := bystander.must("select count(*) from pg_class where relname = 'attacked'"); got != "0" {
		t.Errorf("%s tables of aborted transactions are left", got)
	}
}

func TestAViolationBehindPendingOutputIsStillTold(t *testing.T) {
	more := make(chan struct{})
	defer close(more)
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		c.Query()
		var rows []pgproto3.BackendMessage
		for range 30 {
			rows = append(rows, &pgproto3.DataRow{Values: [][]byte{make([]byte, 2000)}})
		}
		for range more {
			c.Send(rows...) // whole messages, so that there is no half one in the way of an error
		}
	}, nil)
	r := p.raw(t).login()
	r.send(packet('Q', "select\x00"))
	const size = 30 * (5 + 2 + 4 + 2000)
	for sent := uint64(size); ; sent += size {
		more <- struct{}{}
		s := p.await("the rows were read", func(s Snapshot) bool { return s.Pools[0].Counts.BytesSent >= sent })
		if s.BuffersLent > 0 {
			break // more than the sockets hold: the sentence has to wait behind it
		}
	}
	r.send(packet('z', "")).refusedAfter("D", "08P01", "invalid frontend message type 'z'")
	p.quiet(t, 0)
}

func TestEndlessMessagesOfClientsStreamInBoundedMemory(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 2 })
	bystander := p.call()
	undisturbed(t, bystander)
	before := heap()
	for name, start := range map[string][]byte{
		"a query without end":                  partial('Q', 1<<30, "select '"),
		"a statement without end":              partial('P', 1<<30, "\x00select '"),
		"a parameter without end":              partial('B', 1<<30, "\x00\x00"),
		"COPY data without end, nobody copies": partial('d', 1<<31-1, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			r := p.raw(t).login()
			r.send(start)
			chunk := make([]byte, 64<<10)
			for i := range chunk {
				chunk[i] = 'x'
			}
			for i := range 256 { // 16 MiB
				r.send(chunk)
				if i%32 == 0 {
					undisturbed(t, bystander)
					if s := p.state(); s.BytesLent > 512<<10 {
						t.Fatalf("%d bytes are lent", s.BytesLent)
					}
				}
			}
			_ = r.conn.Close()
			p.quiet(t, 1)
		})
	}
	if grown := int64(heap()) - int64(before); grown > 4<<20 {
		t.Errorf("the heap has grown by %d KiB", grown>>10)
	}
	p.await("cut-off server connections are gone", func(s Snapshot) bool { return s.Pools[0].Stats.Idle == s.Servers })
}

func TestAClientThatNeverReadsItsAnswersStops(t *testing.T) {
	p, _ := pooledFake(t, echo, nil)
	bystander := p.call()
	undisturbed(t, bystander)
	r := p.raw(t).login()
	// Requests are pipelined until everything on the way to the server and back is full.
	batch := bytes.Repeat(packet('Q', strings.Repeat("x", 8000)+"\x00"), 8)
	var sent atomic.Int64
	go func() {
		for {
			n, err := r.conn.Write(batch)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	stalled(t, &sent)
	if s := p.state(); s.BytesLent > 512<<10 {
		t.Errorf("%d bytes are lent", s.BytesLent)
	}
	undisturbed(t, bystander)
	_ = r.conn.Close()
	p.quiet(t, 1)
	undisturbed(t, bystander)
}
