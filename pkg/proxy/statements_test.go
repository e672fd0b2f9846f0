package proxy

import (
	"fmt"
	"strings"
	"testing"
)

func parsePacket(name, sql string) []byte { return packet('P', name+"\x00"+sql+"\x00\x00\x00") }

func TestStatementsBeyondTheLimitsEndTheirClientAlone(t *testing.T) {
	long := strings.Repeat("x", 1<<21)
	endless := func(r *raw) {
		for i := range 100 {
			r.send(parsePacket(fmt.Sprint("s", i), "select 1"), packet('S', ""))
		}
	}
	for name, c := range map[string]struct {
		attack func(r *raw)
		want   string
	}{
		"a text of megabytes":              {func(r *raw) { r.send(parsePacket("s", long)) }, "bytes, allowed are 1048576"},
		"a name of megabytes":              {func(r *raw) { r.send(packet('B', "\x00"+long+"\x00\x00\x00\x00\x00\x00\x00")) }, "take more than 16384 bytes"},
		"a name of megabytes to prepare":   {func(r *raw) { r.send(parsePacket(long, "select 1")) }, "take more than 16384 bytes"},
		"a portal of megabytes":            {func(r *raw) { r.send(packet('B', long+"\x00s\x00\x00\x00\x00\x00\x00\x00")) }, "take more than 16384 bytes"},
		"a client that prepares endlessly": {endless, "more than 30 prepared statements in one session"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pooledPostgres(t, nil)
			other := p.raw(t).login()
			other.send(parsePacket("s", "select 7"), packet('S', "")).until('Z')
			r := p.raw(t).login()
			go c.attack(r)
			_, errs := r.ending()
			if len(errs) != 1 || errs[0].Code != "54000" || !strings.Contains(errs[0].Message, c.want) {
				t.Errorf("got %+v, want 54000 and %q", errs, c.want)
			}
			other.send(packet('B', "\x00s\x00\x00\x00\x00\x00\x00\x00"), packet('E', "\x00\x00\x00\x00\x00"), packet('S', "")).until('Z')
			p.await("the client is gone", func(s Snapshot) bool { return s.Clients == 1 && s.BuffersLent == 0 })
		})
	}
}

// One of another client's would answer with its rows.
func TestTheUnnamedStatementOfAnotherClientIsNeverUsed(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	a, b := p.raw(t).login(), p.raw(t).login()
	a.send(parsePacket("", "select 'secret'"), packet('S', "")).until('Z')
	b.send(packet('B', "\x00\x00\x00\x00\x00\x00\x00\x00"), packet('E', "\x00\x00\x00\x00\x00"), packet('S', ""))
	m, err := b.hear()
	if err != nil || m.kind != 'E' {
		t.Fatalf("got %q %q, %v", m.kind, m.body, err)
	}
	if e := errorOf(t, m); e.Code != "26000" {
		t.Errorf("got %s %s", e.Code, e.Message)
	}
}

func TestStatementsAreForgottenWithTheirClients(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	count := func() (n int) {
		done := make(chan struct{})
		p.loop.Post(func() {
			defer close(done)
			for _, pl := range p.pooled {
				n += pl.statements.Len()
			}
		})
		<-done
		return n
	}
	for i := range 20 {
		r := p.raw(t).login()
		r.send(parsePacket("s", fmt.Sprint("select ", i)), packet('S', "")).until('Z')
		r.send(packet('X', ""))
		r.ending()
	}
	p.await("the clients are gone", func(s Snapshot) bool { return s.Clients == 0 })
	if n := count(); n > 3 {
		t.Errorf("%d statements are kept for server connections that may have 3", n)
	}
}
