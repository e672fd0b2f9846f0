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
		"a text of megabytes":            {func(r *raw) { r.send(parsePacket("s", long)) }, "bytes, allowed are 1048576"},
		"a name of megabytes":            {func(r *raw) { r.send(packet('B', "\x00"+long+"\x00\x00\x00\x00\x00\x00\x00")) }, "take more than 16384 bytes"},
		"a name of megabytes to prepare": {func(r *raw) { r.send(parsePacket(long, "select 1")) }, "take more than 16384 bytes"},
		"a portal of megabytes":          {func(r *raw) { r.send(packet('B', long+"\x00s\x00\x00\x00\x00\x00\x00\x00")) }, "take more than 16384 bytes"},
		"texts of too many megabytes": {func(r *raw) {
			for i := range 20 {
				r.send(parsePacket(fmt.Sprint("s", i), "select '"+strings.Repeat("x", 1_000_000)+"'"), packet('S', ""))
			}
		}, "more than 16777216 bytes"},
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
//
// S21
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

const (
	bindUnnamed = "\x00\x00\x00\x00\x00\x00\x00\x00"
	bindS       = "\x00s\x00\x00\x00\x00\x00\x00\x00"
	execute     = "\x00\x00\x00\x00\x00"
)

// turns has the proxy read what was sent so far before more is.
func (p *pooler) turns() {
	for range 3 {
		p.state()
	}
}

// A Close that claims more than its name: what comes later is part of it, and no message of its own.
func TestTheRestOfALongCloseIsNotTakenForAMessage(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	attacker, victim := p.raw(t).login(), p.raw(t).login()
	smuggled := packet('Q', "select 'poison'\x00")
	long := packet('C', "Sx\x00"+string(smuggled))
	for _, linked := range []bool{true, false} {
		if linked {
			attacker.send(append(packet('Q', "select pg_sleep(0.2)\x00"), long[:len(long)-len(smuggled)]...))
		} else {
			attacker.send(long[:len(long)-len(smuggled)])
		}
		p.turns()
		attacker.send(smuggled, packet('S', ""))
		for range 20 {
			if got := victim.ask("select 7"); got != "7" {
				t.Fatalf("the victim got %q", got)
			}
		}
		for errs := 0; errs == 0; {
			m, err := attacker.hear()
			if err != nil {
				t.Fatal(err)
			}
			if m.kind == 'D' && strings.Contains(string(m.body), "poison") {
				t.Fatal("the rest was taken for a query")
			}
			if m.kind == 'E' {
				errs++
			}
		}
		attacker.until('Z')
	}
}

// The answer of the pooler's own to the first costs the client its server connection while the second is on its way.
func TestALargeParseBehindAKnownOneIsWaitedFor(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	r := p.raw(t).login()
	r.send(parsePacket("known", "select 1"), packet('S', "")).until('Z')
	large := parsePacket("large", "select length('"+strings.Repeat("x", 100_000)+"')")
	r.send(append(parsePacket("again", "select 1"), large[:1000]...))
	p.turns()
	r.send(large[1000:], packet('S', "")).until('Z')
	r.send(packet('B', "\x00large\x00\x00\x00\x00\x00\x00\x00"), packet('E', execute), packet('S', ""))
	if m := r.until('D'); !strings.HasSuffix(string(m.body), "100000") {
		t.Errorf("got %q", m.body)
	}
}

func TestMessagesCutBehindTheirHeadersAreWhatTheyAre(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	r := p.raw(t).login()
	r.send(parsePacket("s", "select length($1)"), packet('S', "")).until('Z')
	r.ask("begin")
	bind := packet('B', "\x00s\x00\x00\x00\x00\x01\x00\x01\x86\xa0"+strings.Repeat("x", 100_000)+"\x00\x00")
	r.send(bind[:5])
	p.turns()
	r.send(bind[5:], packet('E', execute), packet('S', ""))
	if m := r.until('D'); !strings.HasSuffix(string(m.body), "100000") {
		t.Errorf("got %q", m.body)
	}
	r.until('Z')
	r.send([]byte{'P', 0x7f, 0xff, 0xff, 0xff})
	p.turns()
	if n := p.state().BytesLent; n > 1<<20 {
		t.Errorf("a header alone has %d bytes lent", n)
	}
	r.send([]byte(strings.Repeat("x", 1<<17)))
	if _, errs := r.ending(); len(errs) != 1 || errs[0].Code != "54000" {
		t.Errorf("got %+v", errs)
	}
}

func TestAClientThatEndsWithAnAnswerOfThePoolersOwnOutstandingCostsNoServerConnection(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	for _, before := range [][]byte{packet('H', ""), packet('Q', "select pg_sleep(0.1)\x00")} {
		r := p.raw(t).login()
		r.send(append(append(before, packet('C', "Sx\x00")...), 0xff, 0, 0, 0, 0))
		r.ending()
		if got := p.raw(t).login().ask("select 7"); got != "7" {
			t.Errorf("the next client got %q", got)
		}
	}
}

// S14, M3
func TestAnAnswerOfThePoolersOwnIsNotPutIntoAMessage(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	r := p.raw(t).login()
	var columns []string
	for i := range 1600 { // more than is read at once
		columns = append(columns, fmt.Sprintf("%d as a_long_name_for_a_column_that_takes_much_space_%d", i, i))
	}
	r.send(parsePacket("s", "select "+strings.Join(columns, ", ")), packet('S', "")).until('Z')
	for range 5 {
		r.send(append(append(append(packet('D', "Ss\x00"), parsePacket("t", "select 1")...), packet('C', "St\x00")...), packet('S', "")...))
		kinds := ""
		for !strings.HasSuffix(kinds, "Z") {
			m, err := r.hear()
			if err != nil {
				t.Fatal(err)
			}
			kinds += string(m.kind)
		}
		if kinds != "tT13Z" {
			t.Fatalf("got %s", kinds)
		}
	}
}

// As TestTheUnnamedStatementOfAnotherClientIsNeverUsed, where an error skips what tells them apart.
func TestAnErrorLeavesNobodyAnothersUnnamedStatement(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	a, b := p.raw(t).login(), p.raw(t).login()
	use := append(append(packet('B', bindUnnamed), packet('E', execute)...), packet('S', "")...)
	for name, skipped := range map[string][]byte{"a Bind": packet('B', bindUnnamed), "a Close": packet('C', "S\x00"), "a Parse": parsePacket("", "select 1")} {
		a.send(parsePacket("", "select 'secret'"), packet('S', "")).until('Z')
		b.send(append(append(append(packet('B', "\x00nobody\x00\x00\x00\x00\x00\x00\x00"), skipped...), packet('S', "")...), use...))
		kinds := ""
		for strings.Count(kinds, "Z") < 2 {
			m, err := b.hear()
			if err != nil {
				t.Fatal(err)
			}
			kinds += string(m.kind)
		}
		if kinds != "EZEZ" {
			t.Errorf("%s: got %s", name, kinds)
		}
	}
}

// M11
func TestALiteralMeansWhatItsClientsSettingsSay(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size = 1 })
	text := parsePacket("s", "select '01/02/2024'::date - '2024-01-01'::date")
	days := func(r *raw) string {
		r.send(packet('B', bindS), packet('E', execute), packet('S', ""))
		m := r.until('D')
		r.until('Z')
		return string(m.body[6:])
	}
	european, american := p.raw(t).login(), p.raw(t).login()
	// In one write: the pooler hears of the setting when the text is on its way already.
	european.send(append(append(packet('Q', "set datestyle to 'ISO, DMY'\x00"), text...), packet('S', "")...)).until('Z')
	european.until('Z')
	american.send(text, packet('S', "")).until('Z')
	for range 3 {
		if got := days(american); got != "1" {
			t.Errorf("the second of January is %s days away", got)
		}
		if got := days(european); got != "31" {
			t.Errorf("the first of February is %s days away", got)
		}
	}
}

// The reset query drops what is prepared there, and not what its last client has.
func TestAResetAfterEachTransactionCostsNoStatement(t *testing.T) {
	p := pooledPostgres(t, func(r *Route) { r.Pool.Size, r.Pool.Reset, r.ResetQuery = 1, true, "DISCARD ALL" })
	r := p.raw(t).login()
	r.send(parsePacket("s", "select 7"), packet('S', "")).until('Z')
	for range 3 {
		r.send(packet('B', bindS), packet('E', execute), packet('S', "")).until('D')
		r.until('Z')
	}
}
