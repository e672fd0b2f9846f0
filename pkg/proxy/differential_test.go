package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

var (
	differentialTime = flag.Duration("differential", 5*time.Second, "how long TestSessionsThroughThePoolerSayWhatPostgreSQLSays runs")
	differentialSeed = flag.Uint64("differential.seed", 0, "the story it begins with; 0 is any")
)

// TestSessionsThroughThePoolerSayWhatPostgreSQLSays has clients say random legal things both to sessions of their own and
// through a pooler with fewer server connections than there are clients, and compares every answer, byte by byte.
func TestSessionsThroughThePoolerSayWhatPostgreSQLSays(t *testing.T) {
	s := pgtest.Shared(t)
	few := pooledPostgres(t, func(r *Route) { r.DBName, r.Pool.Size = pgtest.Database, 2 })
	// Clients that have objects in their sessions keep their server connections: there are enough for all of them.
	more := pooledPostgres(t, func(r *Route) { r.DBName, r.Pool.Size = pgtest.Database, 2*tellers })
	seed := *differentialSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	stories, batches := 0, 0
	for end := time.Now().Add(*differentialTime); stories == 0 || time.Now().Before(end); seed++ {
		pooled := few.Addr
		if seed%2 == 1 {
			pooled = more.Addr
		}
		n, err := tellStory(t, seed, s.Addr(), pooled)
		if err != nil {
			t.Fatalf("story %d (run it with -differential.seed): %v", seed, err)
		}
		stories++
		batches += n
	}
	t.Logf("%d stories, %d batches", stories, batches)
}

// teller is one client of a story, in both worlds.
type teller struct {
	name           string
	direct, pooled net.Conn
	status         byte
	log            []string
}

const tellers = 4

func tellStory(t *testing.T, seed uint64, direct, pooled string) (batches int, err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var all []*teller
	for i := range tellers {
		c := &teller{name: string(rune('a' + i)), direct: hijack(t, direct), pooled: hijack(t, pooled), status: 'I'}
		defer c.direct.Close()
		defer c.pooled.Close()
		all = append(all, c)
	}
	for range 10 + rng.IntN(40) {
		c := all[rng.IntN(len(all))]
		// One of the two server connections stays free.
		busy := slices.IndexFunc(all, func(o *teller) bool { return o != c && o.status != 'I' })
		b := story{rng: rng, mayBegin: busy < 0, objects: seed%2 == 1}
		b.write(c.status)
		batches++
		for _, conn := range []net.Conn{c.direct, c.pooled} {
			if _, err := conn.Write(b.bytes); err != nil {
				return batches, err
			}
		}
		want, status, err1 := listen(c.direct, b.ends)
		got, _, err2 := listen(c.pooled, b.ends)
		c.log = append(c.log, b.said...)
		at, same := alike(want, got, c.status)
		if err := errors.Join(err1, err2); err != nil || !same {
			return batches, fmt.Errorf("client %s said\n  %s\nPostgreSQL\n  %s\nsidecar\n  %s\nbefore that it said\n  %s\n%v", c.name, strings.Join(b.said, "\n  "),
				strings.Join(want[max(0, at-3):], "\n  "), strings.Join(got[max(0, at-3):], "\n  "), strings.Join(c.log, "\n  "), err) //nolint:errorlint // often there is none
		}
		c.status = status
	}
	return batches, nil
}

// alike compares two transcripts, which begin in this status, and says up to where they are the same. It allows for a
// statement that is missing on the server connection when a transaction has failed: it cannot be prepared there any more,
// so another error that it would meet is not found, nor can it be described.
func alike(want, got []string, status byte) (at int, same bool) {
	for ; at < len(want) && at < len(got); at++ {
		switch w, g := want[at], got[at]; {
		case status == 'E' && g[0] == 'E' && strings.Contains(g, `\x00C25P02\x00`):
			end := at
			for end < len(want) && want[end][0] != 'Z' {
				end++
			}
			want = slices.Concat(want[:at], []string{g}, want[end:])
		case w != g:
			return at, false
		case w[0] == 'Z':
			status = w[3]
		}
	}
	return at, len(want) == len(got)
}

// hijack logs in and gives the bare connection.
func hijack(t *testing.T, addr string) net.Conn {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	host, port, _ := strings.Cut(addr, ":")
	c, err := pgconn.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s sslmode=disable", host, port, pgtest.User, pgtest.Password, pgtest.Database))
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	_ = h.Conn.SetDeadline(time.Now().Add(patience))
	return h.Conn
}

// listen reads up to so many ReadyForQuery, and renders what came.
func listen(conn net.Conn, ends int) (said []string, status byte, err error) {
	for ends > 0 {
		var header [5]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return said, 0, err
		}
		n := binary.BigEndian.Uint32(header[1:])
		if n < 4 || n > 1<<24 {
			return said, 0, errors.New("message too long")
		}
		body := make([]byte, n-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return said, 0, err
		}
		if header[0] == 'Z' {
			ends--
			status = body[0]
		}
		said = append(said, fmt.Sprintf("%c %.300q", header[0], body))
	}
	return said, status, nil
}

// story writes one batch.
type story struct {
	rng      *rand.Rand
	mayBegin bool
	objects  bool // also things that keep a client at its server connection

	bytes   []byte
	said    []string
	ends    int
	unnamed bool // the unnamed statement was prepared in this batch
}

var (
	storyTexts = []string{
		"select 1 as one", "select $1::int4 as n", "select $1::int4 + $2::int4 as sum", "values (1), (2), (3)", "select 1 / $1::int4",
		"selec", "", "select repeat('x', 5000)", "select $1 as untyped", "show standard_conforming_strings", "rollback", "select nothing from nowhere",
	}
	storyQueries = []string{
		"select 1", "select 1; select 2", "", "select 1/0", "selec", "deallocate a", "deallocate \"b\"", "deallocate all", "discard all",
		"deallocate prepare c;", "rollback", "commit", "savepoint x", "rollback to x", "select 1; select 1/0; select 2",
	}
	storyStates = []string{
		"set work_mem = '1MB'", "select set_config('work_mem', '2MB', false)", "set local work_mem = '3MB'", "reset work_mem", "show work_mem",
		"set app.x = '1'", "set local app.x = '2'", "reset app.x", "select current_setting('app.x', true)", "show app.x", "set app.x to default",
		"select set_config('app.y', 'z', true)", "select current_setting('app.y', true)", "do $$begin perform set_config('app.x', '3', false); end$$",
		"set search_path = pg_catalog", "show search_path", "reset all", "set role pg_monitor", "reset role", "show role", "set timezone = 'Asia/Tokyo'",
		"set datestyle = 'German'", "select date '2024-02-03'", "set default_transaction_read_only = on", "show default_transaction_read_only",
		"set session characteristics as transaction read write", "set statement_timeout = '1h'", "show statement_timeout", "show timezone",
	}
	storyObjects = []string{
		"create temp table mine as select 1 as a", "insert into mine values (2)", "select count(*) from mine", "drop table mine",
		"select pg_advisory_lock_shared(7)", "select pg_advisory_unlock_shared(7)", "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
		"prepare q as select 1 as q", "execute q", "deallocate q", "declare h cursor with hold for values (1), (2)", "fetch h", "close h", "listen c", "unlisten c",
		"select pg_listening_channels()", "do $$begin create temp table if not exists mine as select 1 as a; end$$", "discard temp",
	}
	storyNames = []string{"a", "b", "c", "A b"}
)

func pick(rng *rand.Rand, list []string) string { return list[rng.IntN(len(list))] }

func (b *story) say(m pgproto3.FrontendMessage) {
	out, err := m.Encode(b.bytes)
	if err != nil {
		panic(err)
	}
	b.bytes = out
	b.said = append(b.said, fmt.Sprintf("%T%+v", m, m)[len("*pgproto3."):])
}

func (b *story) write(status byte) {
	if b.rng.IntN(4) == 0 {
		sql := b.text(storyQueries)
		if b.mayBegin && b.rng.IntN(3) == 0 {
			sql = "begin"
		}
		if status == 'T' && b.rng.IntN(3) == 0 {
			sql = "commit"
		}
		b.say(&pgproto3.Query{String: sql})
		b.ends++
		return
	}
	for range 1 + b.rng.IntN(8) {
		b.step()
	}
	b.say(&pgproto3.Sync{})
	b.ends++
}

// text is one of the list, or one about what the session has.
func (b *story) text(list []string) string {
	switch b.rng.IntN(4) {
	case 0:
		return pick(b.rng, storyStates)
	case 1:
		if b.objects {
			return pick(b.rng, storyObjects)
		}
	}
	return pick(b.rng, list)
}

func (b *story) step() {
	statement := pick(b.rng, storyNames)
	if b.unnamed && b.rng.IntN(3) == 0 {
		statement = ""
	}
	portal := []string{"", "", "p"}[b.rng.IntN(3)]
	switch b.rng.IntN(13) {
	case 0, 1, 2:
		m := &pgproto3.Parse{Name: statement, Query: b.text(storyTexts)}
		if b.rng.IntN(4) == 0 {
			m.Name = ""
		}
		b.unnamed = b.unnamed || m.Name == ""
		if b.rng.IntN(4) == 0 {
			m.ParameterOIDs = []uint32{23}
		}
		b.say(m)
	case 3, 4, 5, 6:
		m := &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: statement}
		for range b.rng.IntN(3) {
			m.Parameters = append(m.Parameters, []byte(fmt.Sprint(b.rng.IntN(2))))
		}
		b.say(m)
		if b.rng.IntN(2) == 0 {
			b.say(&pgproto3.Describe{ObjectType: 'P', Name: portal})
		}
		b.say(&pgproto3.Execute{Portal: portal, MaxRows: uint32(b.rng.IntN(3))})
	case 7:
		b.say(&pgproto3.Describe{ObjectType: 'S', Name: statement})
	case 8, 9:
		b.say(&pgproto3.Close{ObjectType: 'S', Name: statement})
		b.unnamed = b.unnamed && statement != ""
	case 10:
		b.say(&pgproto3.Close{ObjectType: 'P', Name: portal})
		if b.rng.IntN(2) == 0 {
			b.say(&pgproto3.Flush{})
		}
	case 11:
		b.say(&pgproto3.Sync{})
		b.ends++
		b.unnamed = false
	case 12: // as psycopg does; the text is not used again
		b.say(&pgproto3.Parse{Query: fmt.Sprintf("deallocate %q", pick(b.rng, storyNames))})
		b.say(&pgproto3.Bind{DestinationPortal: portal})
		b.say(&pgproto3.Execute{Portal: portal})
		b.unnamed = false
	}
}
