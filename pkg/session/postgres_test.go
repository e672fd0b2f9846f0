package session

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pgwire"
)

// In the schema twin every kind of statement can be done.
const twinSchema = `
drop schema if exists twin cascade;
create schema twin;
create table twin.plain (x int);
create table twin.early (x int);
create table twin.late (x int);
create table twin.deferred (x int unique deferrable initially deferred);
create function twin.raise() returns trigger language plpgsql as 'begin raise ''no''; end';
create trigger early before insert on twin.early for each statement execute function twin.raise();
create trigger late after insert on twin.late for each statement execute function twin.raise();
`

var statementSQL = map[statement]string{
	rows: "select generate_series(1, 2)", change: "insert into twin.plain values (1)", empty: "", begin: "begin",
	commit: "commit", rollback: "rollback", boom: "select 1 / (2 - g) from generate_series(1, 3) g",
	late:   "insert into twin.deferred values (1), (1)",
	copyTo: "copy (select 1) to stdout", copyFrom: "copy twin.plain from stdin", copyEarly: "copy twin.early from stdin",
	copyLate: "copy twin.late from stdin",
}

func statementName(s statement) string { return "s" + string(rune('a'+s)) }

// encode is m as PostgreSQL wants it.
func (m message) encode() pgproto3.FrontendMessage {
	var sql []string
	for _, s := range m.sql {
		sql = append(sql, statementSQL[s])
	}
	text := strings.Join(sql, ";")
	if m.fails {
		text = "selec"
	}
	either := func(good, bad string) string {
		if m.fails {
			return bad
		}
		return good
	}
	switch m.typ {
	case pgwire.Query:
		return &pgproto3.Query{String: text}
	case pgwire.Parse:
		return &pgproto3.Parse{Query: text}
	case pgwire.Bind:
		return &pgproto3.Bind{PreparedStatement: either(statementName(m.sql[0]), "missing")}
	case pgwire.Describe:
		if m.part {
			return &pgproto3.Describe{ObjectType: 'S', Name: either(statementName(m.sql[0]), "missing")}
		}
		return &pgproto3.Describe{ObjectType: 'P', Name: either("", "missing")}
	case pgwire.Execute:
		e := &pgproto3.Execute{Portal: either("", "missing")}
		if m.part && m.sql[0] == rows {
			e.MaxRows = 1
		}
		return e
	case pgwire.Close:
		return &pgproto3.Close{ObjectType: either("S", "?")[0], Name: "missing"}
	case pgwire.Sync:
		return &pgproto3.Sync{}
	case pgwire.Flush:
		return &pgproto3.Flush{}
	case pgwire.FunctionCall:
		f := &pgproto3.FunctionCall{Function: 177, Arguments: [][]byte{[]byte("1"), []byte("2")}} // int4pl
		if m.fails {
			f.Function = 1
		}
		return f
	case pgwire.CopyData:
		return &pgproto3.CopyData{Data: []byte(either("1\n", "x\n"))}
	case pgwire.CopyDone:
		return &pgproto3.CopyDone{}
	case pgwire.CopyFail:
		return &pgproto3.CopyFail{Message: "changed my mind"}
	}
	panic("no such message")
}

// The twin would prove nothing if it were wrong itself.
//
// S11
func TestTheTwinAnswersAsPostgreSQLDoes(t *testing.T) {
	server := pgtest.Shared(t)
	if err := server.Exec(t.Context(), twinSchema); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for seed := range uint64(20) {
		traffic := newTraffic(rand.New(rand.NewPCG(seed, 2)))
		var messages []message
		for len(messages) < 300 || len(traffic.plan) > 0 {
			messages = append(messages, traffic.next())
		}
		messages = append(messages, message{typ: pgwire.Sync}) // without it the last answers stay in PostgreSQL's buffer
		twin := &backend{input: slices.Clone(messages)}
		resume, stop := twin.start()
		var want []string
		for a, alive := resume(); alive && a.typ != waits; a, alive = resume() {
			want = keep(want, a)
		}
		stop()
		for _, a := range want {
			seen[a] = true
		}
		got := converse(t, server, messages)
		if slices.Equal(got, want) {
			continue
		}
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		t.Fatalf("seed %d: answer %d: PostgreSQL goes on with\n%s\nand the twin with\n%s\nafter\n%s", seed, i,
			strings.Join(got[i:min(i+5, len(got))], "\n"), strings.Join(want[i:min(i+5, len(want))], "\n"), describeTo(messages, i))
	}
	for _, typ := range "123tTnCIsEGHcV" {
		if a := received(answer{typ: byte(typ)}); !seen[a] {
			t.Errorf("no traffic led to %s", a)
		}
	}
	for _, status := range "ITE" {
		if a := received(answer{pgwire.ReadyForQuery, byte(status)}); !seen[a] {
			t.Errorf("no traffic led to %s", a)
		}
	}
}

// keep leaves out what says nothing about the protocol's state: how many rows there are, and warnings.
func keep(list []string, a answer) []string {
	switch a.typ {
	case pgwire.DataRow, pgwire.CopyData, pgwire.NoticeResponse, flushed:
		return list
	}
	return append(list, received(a))
}

// converse sends all the messages at once and returns what PostgreSQL answers up to the end of the connection.
func converse(t *testing.T, server *pgtest.Server, messages []message) []string {
	t.Helper()
	conn, err := net.Dial("tcp", server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{
		"user": pgtest.User, "database": pgtest.Database,
	}})
	for s := range statements {
		f.Send(&pgproto3.Parse{Name: statementName(s), Query: statementSQL[s]})
	}
	f.Send(&pgproto3.Sync{})
	for _, m := range messages {
		f.Send(m.encode())
	}
	f.Send(&pgproto3.Terminate{})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	var answers []string
	for begun := 0; ; {
		m, err := f.Receive()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return answers
		}
		if err != nil {
			t.Fatalf("after %d answers: %v", len(answers), err)
		}
		encoded, err := m.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		a := answer{typ: encoded[0]}
		if z, ok := m.(*pgproto3.ReadyForQuery); ok {
			a.status = z.TxStatus
		}
		if begun == 2 {
			answers = keep(answers, a)
		} else if a.typ == pgwire.ReadyForQuery {
			begun++ // the login's, and that of the first Sync
		}
	}
}

// describeTo renders the messages up to those that lead to answer n.
func describeTo(messages []message, n int) string {
	twin := &backend{}
	resume, stop := twin.start()
	defer stop()
	var lines, answers []string
	for _, m := range messages {
		line := sent(m.typ)
		for _, s := range m.sql {
			line += " " + statementSQL[s]
		}
		if m.fails {
			line += " (fails)"
		}
		lines = append(lines, line)
		twin.input = append(twin.input, m)
		for a, alive := resume(); alive && a.typ != waits; a, alive = resume() {
			before := len(answers)
			if answers = keep(answers, a); len(answers) > before {
				lines = append(lines, "    "+received(a))
			}
		}
		if len(answers) > n {
			break
		}
	}
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
