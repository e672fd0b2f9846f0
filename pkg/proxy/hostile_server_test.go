package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// hostileLogins are servers that misbehave before they are ready. What they do is worth a line in the log, and another
// attempt.
func hostileLogins() map[string]struct {
	serve func(*pgtest.FakeConn)
	want  string // in the log
} {
	type attack = struct {
		serve func(*pgtest.FakeConn)
		want  string
	}
	long := bytes.Repeat([]byte("x"), 33<<10)
	endless := func(c *pgtest.FakeConn, m pgproto3.BackendMessage) {
		for {
			c.Send(m)
		}
	}
	// challenged plays SCRAM up to the challenge that make builds from the client's nonce.
	challenged := func(build func(nonce string) string) func(*pgtest.FakeConn) {
		return func(c *pgtest.FakeConn) {
			_, first := c.AskSASL(scram.Mechanism)
			_, nonce, _ := strings.Cut(string(first), "r=")
			c.ContinueSASL([]byte(build(nonce)))
			c.AwaitEnd()
		}
	}
	// finished plays SCRAM up to the server's last word.
	finished := func(last func(*pgtest.FakeConn)) func(*pgtest.FakeConn) {
		return func(c *pgtest.FakeConn) {
			_, first := c.AskSASL(scram.Mechanism)
			_, nonce, _ := strings.Cut(string(first), "r=")
			c.ContinueSASL([]byte("r=" + nonce + "more,s=c2FsdA==,i=1"))
			last(c)
			c.AwaitEnd()
		}
	}
	after := func(rest func(*pgtest.FakeConn)) func(*pgtest.FakeConn) {
		return func(c *pgtest.FakeConn) { rest(c); c.AwaitEnd() }
	}
	accepted := func(rest func(*pgtest.FakeConn)) func(*pgtest.FakeConn) {
		return after(func(c *pgtest.FakeConn) { c.AuthOK(); rest(c) })
	}
	const slow = "connect timeout: the server did not finish the login within 2s"
	const malformed = "malformed SCRAM server-first-message: "
	return map[string]attack{
		"answers nothing":              {after(func(*pgtest.FakeConn) {}), slow},
		"answers half a message":       {after(func(c *pgtest.FakeConn) { c.Raw([]byte("R\x00\x00")) }), slow},
		"stops before it is ready":     {accepted(func(*pgtest.FakeConn) {}), slow},
		"closes without a word":        {func(c *pgtest.FakeConn) { c.Close() }, "server closed the connection during login"},
		"resets the connection":        {func(c *pgtest.FakeConn) { c.Reset() }, "server closed the connection during login"},
		"speaks HTTP":                  {after(func(c *pgtest.FakeConn) { c.Raw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }), "bad packet header: message 'H' announces length 1414811695"},
		"length 0":                     {after(func(c *pgtest.FakeConn) { c.Frame('R', 0, nil) }), "message 'R' announces length 0, allowed is 4 to 32768"},
		"length 3":                     {after(func(c *pgtest.FakeConn) { c.Frame('R', 3, nil) }), "message 'R' announces length 3, allowed is 4 to 32768"},
		"length -1":                    {after(func(c *pgtest.FakeConn) { c.Frame('R', -1, nil) }), "message 'R' announces length -1, allowed is 4 to 32768"},
		"the largest length":           {after(func(c *pgtest.FakeConn) { c.Frame('E', 1<<31-1, long) }), "message 'E' announces length 2147483647, allowed is 4 to 32768"},
		"an empty answer":              {after(func(c *pgtest.FakeConn) { c.Frame('R', 4, nil) }), "server sent a broken authentication message"},
		"half a code":                  {after(func(c *pgtest.FakeConn) { c.Frame('R', 6, []byte("xx")) }), "server sent a broken authentication message"},
		"GSSAPI":                       {after(func(c *pgtest.FakeConn) { c.Frame('R', 8, []byte("\x00\x00\x00\x07")) }), "server asks for authentication method 7"},
		"crypt":                        {after(func(c *pgtest.FakeConn) { c.Frame('R', 8, []byte("\x00\x00\x00\x04")) }), "server asks for authentication method 4"},
		"a method of the future":       {after(func(c *pgtest.FakeConn) { c.Frame('R', 8, []byte("\xff\xff\xff\xff")) }), "server asks for authentication method 4294967295"},
		"a short md5 salt":             {after(func(c *pgtest.FakeConn) { c.Frame('R', 11, []byte("\x00\x00\x00\x05abc")) }), "server sent an md5 salt of 3 bytes, allowed are 4"},
		"a long md5 salt":              {after(func(c *pgtest.FakeConn) { c.Frame('R', 13, []byte("\x00\x00\x00\x05abcde")) }), "server sent an md5 salt of 5 bytes, allowed are 4"},
		"negotiates":                   {after(func(c *pgtest.FakeConn) { c.Frame('v', 12, make([]byte, 8)) }), "server wants to negotiate the protocol"},
		"ready before accepting":       {after(func(c *pgtest.FakeConn) { c.Ready('I') }), "server sent message 'Z' before it had accepted the login"},
		"a parameter before accepting": {after(func(c *pgtest.FakeConn) { c.ParameterStatus("a", "b") }), "server sent message 'S' before it had accepted the login"},
		"accepts twice":                {accepted(func(c *pgtest.FakeConn) { c.AuthOK() }), "server asked for authentication twice"},
		"asks after accepting":         {accepted(func(c *pgtest.FakeConn) { c.Send(&pgproto3.AuthenticationCleartextPassword{}) }), "server asked for authentication twice"},
		"rows during the login":        {accepted(func(c *pgtest.FakeConn) { c.Row("x") }), "server sent message 'D' during login"},
		"ready in a transaction":       {accepted(func(c *pgtest.FakeConn) { c.Ready('T') }), "server is not idle after its login"},
		"ready with too much":          {accepted(func(c *pgtest.FakeConn) { c.Frame('Z', 6, []byte("II")) }), "server is not idle after its login"},
		"ready with nothing":           {accepted(func(c *pgtest.FakeConn) { c.Frame('Z', 4, nil) }), "server is not idle after its login"},
		"a cancel key of no bytes":     {accepted(func(c *pgtest.FakeConn) { c.Frame('K', 8, make([]byte, 4)) }), "server sent a cancel key of 0 bytes, allowed are 4"},
		"a cancel key cut short":       {accepted(func(c *pgtest.FakeConn) { c.Frame('K', 6, make([]byte, 2)) }), "server sent a cancel key of 0 bytes, allowed are 4"},
		"a cancel key of 32 bytes":     {accepted(func(c *pgtest.FakeConn) { c.Frame('K', 40, make([]byte, 36)) }), "server sent a cancel key of 32 bytes, allowed are 4"},
		"a parameter without a name":   {accepted(func(c *pgtest.FakeConn) { c.Frame('S', 7, []byte("\x00x\x00")) }), "server sent a broken ParameterStatus packet"},
		"a parameter without an end":   {accepted(func(c *pgtest.FakeConn) { c.Frame('S', 7, []byte("a\x00x")) }), "server sent a broken ParameterStatus packet"},
		"a parameter of 33 KiB":        {accepted(func(c *pgtest.FakeConn) { c.ParameterStatus("a", string(long)) }), "message 'S' announces length 33799, allowed is 4 to 32768"},
		"parameters without end": {accepted(func(c *pgtest.FakeConn) {
			endless(c, &pgproto3.ParameterStatus{Name: "name", Value: string(long[:9000])})
		}), "server sent more than 65536 bytes of parameters during login"},
		"short parameters without end": {accepted(func(c *pgtest.FakeConn) { endless(c, &pgproto3.ParameterStatus{Name: "n", Value: "v"}) }), "server sent more than 1000 messages during login"},
		"notices without end":          {after(func(c *pgtest.FakeConn) { endless(c, &pgproto3.NoticeResponse{Message: "hello"}) }), "server sent more than 1000 messages during login"},
		"an error without a SQLSTATE":  {after(func(c *pgtest.FakeConn) { c.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Message: "no"}) }), "server refused the login: no (SQLSTATE )"},
		"an error without anything":    {after(func(c *pgtest.FakeConn) { c.Frame('E', 5, []byte{0}) }), "server refused the login:  (SQLSTATE )"},
		"an error without an end":      {after(func(c *pgtest.FakeConn) { c.Frame('E', 10, []byte("SFATAL")) }), "server refused the login:  (SQLSTATE )"},
		"an error that is empty":       {after(func(c *pgtest.FakeConn) { c.Frame('E', 4, nil) }), "server refused the login:  (SQLSTATE )"},
		"too many clients":             {after(func(c *pgtest.FakeConn) { c.Error("FATAL", "53300", "sorry, too many clients already") }), "sorry, too many clients already (SQLSTATE 53300)"},
		"is starting up":               {after(func(c *pgtest.FakeConn) { c.Error("FATAL", "57P03", "the database system is starting up") }), "the database system is starting up (SQLSTATE 57P03)"},
		"is shutting down":             {after(func(c *pgtest.FakeConn) { c.Error("FATAL", "57P01", "going down") }), "going down (SQLSTATE 57P01)"},

		"ready twice": {func(c *pgtest.FakeConn) { c.Raw(readyTwice()); c.AwaitEnd() }, "server sent message 'Z' behind its login"},
		"an answer nobody asked for": {func(c *pgtest.FakeConn) {
			c.Raw(append(readyTwice()[:15], packet('C', "SELECT 1\x00")...))
			c.AwaitEnd()
		}, "server sent message 'C' behind its login"},
		"ready and at its end": {func(c *pgtest.FakeConn) {
			c.Raw(append(readyTwice()[:15], packet('E', "SFATAL\x00C57P01\x00Mbye\x00\x00")...))
			c.Close()
		}, "server sent message 'E' behind its login"},

		"SASL without a mechanism": {after(func(c *pgtest.FakeConn) { c.Frame('R', 9, []byte("\x00\x00\x00\x0a\x00")) }), "server offers no SASL mechanism that is supported"},
		"SASL without an end":      {after(func(c *pgtest.FakeConn) { c.Frame('R', 13, []byte("\x00\x00\x00\x0aSCRAM")) }), "server offers no SASL mechanism that is supported"},
		"another SASL mechanism": {after(func(c *pgtest.FakeConn) {
			c.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-1", "PLAIN"}})
		}), "server offers no SASL mechanism that is supported"},
		"continues what was not begun": {after(func(c *pgtest.FakeConn) {
			c.Send(&pgproto3.AuthenticationSASLContinue{Data: []byte("r=x,s=c2FsdA==,i=1")})
		}), "server continued a SASL exchange that was not begun"},
		"ends what was not begun": {after(func(c *pgtest.FakeConn) { c.FinishSASL([]byte("v=x")) }), "server ended a SASL exchange that was not under way"},
		"begins twice": {after(func(c *pgtest.FakeConn) {
			c.AskSASL(scram.Mechanism)
			c.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{scram.Mechanism}})
		}), "server began a SASL exchange twice"},
		"a nonce of 3,000 bytes":     {challenged(func(n string) string { return "r=" + n + strings.Repeat("x", 3000) + ",s=c2FsdA==,i=1" }), malformed + "the nonce has 3000 bytes, at most 256 are allowed"},
		"a nonce of 30,000 bytes":    {challenged(func(n string) string { return "r=" + n + strings.Repeat("x", 30000) + ",s=c2FsdA==,i=1" }), malformed + "it has"},
		"a nonce of its own":         {challenged(func(string) string { return "r=mine,s=c2FsdA==,i=1" }), malformed + "its nonce does not begin with the client's"},
		"a nonce not extended":       {challenged(func(n string) string { return "r=" + n + ",s=c2FsdA==,i=1" }), malformed + "the nonce is empty"},
		"no salt":                    {challenged(func(n string) string { return "r=" + n + "x,i=1" }), malformed + `attribute s= expected, \"i\" found`},
		"no iterations":              {challenged(func(n string) string { return "r=" + n + "x,s=c2FsdA==" }), malformed + "it ends too early"},
		"iteration count 0":          {challenged(func(n string) string { return "r=" + n + "x,s=c2FsdA==,i=0" }), malformed + "the iteration count must be a number from 1 to 1000000"},
		"iteration count -1":         {challenged(func(n string) string { return "r=" + n + "x,s=c2FsdA==,i=-1" }), malformed + "the iteration count must be a number from 1 to 1000000"},
		"iteration count 2147483647": {challenged(func(n string) string { return "r=" + n + "x,s=c2FsdA==,i=2147483647" }), malformed + "the iteration count must be a number from 1 to 1000000"},
		"an empty challenge":         {challenged(func(string) string { return "" }), malformed + "attribute expected"},
		"a wrong signature":          {finished(func(c *pgtest.FakeConn) { c.FinishSASL([]byte("v=" + strings.Repeat("A", 43) + "=")) }), "the server did not prove that it knows the password"},
		"a short signature":          {finished(func(c *pgtest.FakeConn) { c.FinishSASL([]byte("v=AAAA")) }), "malformed SCRAM server-final-message: the signature must be base64 of 32 bytes"},
		"a SCRAM error":              {finished(func(c *pgtest.FakeConn) { c.FinishSASL([]byte("e=other-error")) }), "the server refused the SCRAM exchange"},
		"accepts without proof":      {finished(func(c *pgtest.FakeConn) { c.AuthOK(); c.Ready('I') }), "server accepted the login without proving that it knows the password"},
		"challenges twice":           {finished(func(c *pgtest.FakeConn) { c.Send(&pgproto3.AuthenticationSASLContinue{Data: []byte("r=x")}) }), "SCRAM server-first-message sent out of order"},
	}
}

// readyTwice is a welcome with one ReadyForQuery too many, in one piece.
func readyTwice() []byte {
	return append(append(packet('R', "\x00\x00\x00\x00"), packet('Z', "I")...), packet('Z', "I")...)
}

// S44, S61, S83, M21, M24, CVE-2026-6665, CVE-2026-6666
func TestHostileLoginsOfServersAreGivenUpAndTriedAgain(t *testing.T) {
	pgtest.CheckLeaks(t)
	attacks := hostileLogins()
	var seen sync.Map // databases whose server has misbehaved
	p, f := pooledFake(t, func(c *pgtest.FakeConn) {
		// The first connection of each database is hostile, the others are not.
		db := c.Startup()["database"]
		if a, hostile := attacks[db]; hostile {
			if _, again := seen.LoadOrStore(db, true); !again {
				a.serve(c)
				return
			}
		}
		c.Welcome()
		echoQueries(c)
	}, func(s *Settings, r *Route) {
		s.ServerConnectTimeout = 2 * time.Second
		r.DBName, r.Pool.LoginRetry = r.Database, 100*time.Millisecond
	})
	before := heap()
	bystander := p.call()
	var wg sync.WaitGroup
	for name := range attacks {
		wg.Go(func() {
			r := p.raw(t).send(hello("user", "app", "database", name))
			r.until('Z') // it waited for the next attempt
			if got := r.ask("select 7"); got != "select 7" {
				t.Errorf("%s: got %q", name, got)
			}
			_ = r.conn.Close()
		})
	}
	undisturbed(t, bystander)
	wg.Wait()
	p.quiet(t, 1)
	log := p.logs.String()
	for name, a := range attacks {
		if line := lineWith(log, "cannot connect to server", "database=\""+name+"\"", "database="+name+" "); !strings.Contains(line, a.want) {
			t.Errorf("a server that does this: %s\nlogged %s\nwant   %s", name, line, a.want)
		}
	}
	if strings.Contains(log, pgtest.Password) {
		t.Error("the password is in the log")
	}
	if grown := int64(heap()) - int64(before); grown > 8<<20 {
		t.Errorf("the heap has grown by %d KiB", grown>>10)
	}
	if n := f.Accepted(); n < 2*len(attacks) {
		t.Errorf("%d connections were made, want two for each of %d attacks", n, len(attacks))
	}
}

// lineWith finds the first line that has message and one of the others.
func lineWith(log, message string, others ...string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, message) {
			for _, o := range others {
				if strings.Contains(line, o) {
					return line
				}
			}
		}
	}
	return ""
}

// S40, S62
func TestHostileAnswersEndTheirConnection(t *testing.T) {
	pgtest.CheckLeaks(t)
	long := strings.Repeat("x", 40<<10)
	frame := func(kind byte, length int32, body string) func(*pgtest.FakeConn) {
		return func(c *pgtest.FakeConn) { c.Frame(kind, length, []byte(body)) }
	}
	raw := func(b ...byte) func(*pgtest.FakeConn) { return func(c *pgtest.FakeConn) { c.Raw(b) } }
	const bad = "bad packet header: message "
	const allowed = ", allowed is 4 to 2147483647"
	attacks := map[string]struct {
		answer func(*pgtest.FakeConn)
		before string // messages that the client may get
		want   string // "" is that of a crash
	}{
		"garbage":                     {raw([]byte("\x00\xff\xff\xff\xff garbage")...), "", bad + "0x00 announces length -1" + allowed},
		"length 0":                    {frame('T', 0, ""), "", bad + "'T' announces length 0" + allowed},
		"length 3":                    {frame('C', 3, "SEL"), "", bad + "'C' announces length 3" + allowed},
		"length -1":                   {frame('D', -1, long), "", bad + "'D' announces length -1" + allowed},
		"the most negative length":    {frame('D', -1<<31, ""), "", bad + "'D' announces length -2147483648" + allowed},
		"a type that does not exist":  {frame('q', 4, ""), "", "server sent message 'q' where the protocol does not allow it"},
		"a message only clients say":  {frame('Q', 5, "\x00"), "", "server sent message 'Q' where the protocol does not allow it"},
		"a request for a password":    {frame('R', 8, "\x00\x00\x00\x03"), "", "server sent message 'R' where the protocol does not allow it"},
		"a new cancel key":            {frame('K', 12, "12345678"), "", "server sent message 'K' where the protocol does not allow it"},
		"a negotiation":               {frame('v', 12, "12345678"), "", "server sent message 'v' where the protocol does not allow it"},
		"replication":                 {frame('W', 7, "\x00\x00\x00"), "", "server sent message 'W' where the protocol does not allow it"},
		"ready of length 4":           {frame('Z', 4, ""), "", "server sent ReadyForQuery of length 4, allowed is 5"},
		"ready of 2 GiB":              {frame('Z', 1<<31-1, "I"), "", "server sent ReadyForQuery of length 2147483647, allowed is 5"},
		"ready with no known status":  {frame('Z', 5, "X"), "", "server sent ReadyForQuery with status 'X', allowed are 'I', 'T' and 'E'"},
		"a parameter of 40 KiB":       {func(c *pgtest.FakeConn) { c.ParameterStatus("a", long) }, "", "server sent a ParameterStatus of 40968 bytes, allowed are 32768"},
		"garbage behind a row":        {func(c *pgtest.FakeConn) { c.Columns("a"); c.Row("b"); c.Frame('!', 9, nil) }, "TD", "server sent message '!' where the protocol does not allow it"},
		"the end":                     {func(c *pgtest.FakeConn) { c.Close() }, "", "server conn crashed?"},
		"a reset":                     {func(c *pgtest.FakeConn) { c.Reset() }, "", "server conn crashed?"},
		"the end behind a row":        {func(c *pgtest.FakeConn) { c.Columns("a"); c.Row("b"); c.Close() }, "TD", "server conn crashed?"},
		"the end in the next header":  {func(c *pgtest.FakeConn) { c.Columns("a"); c.Raw([]byte("D\x00\x00")); c.Close() }, "T", "server conn crashed?"},
		"an answer to another kind":   {func(c *pgtest.FakeConn) { c.Ready('I'); c.Complete("SELECT 1") }, "Z", ""},
		"two ends of one query":       {func(c *pgtest.FakeConn) { c.Complete("A"); c.Ready('I'); c.Ready('I') }, "CZ", ""},
		"a notice and then the end":   {func(c *pgtest.FakeConn) { c.Send(&pgproto3.NoticeResponse{Message: "bye"}); c.Close() }, "N", "server conn crashed?"},
		"an error cut by the end":     {func(c *pgtest.FakeConn) { c.Columns("a"); c.Raw([]byte("E\x00\x00\x01\x00SFATAL\x00")); c.Close() }, "T", "cut"},
		"a row that is cut":           {func(c *pgtest.FakeConn) { c.Columns("a"); c.Raw([]byte("D\x00\x00\x01\x00\x00\x01")); c.Close() }, "T", "cut"},
		"a row without end, then cut": {func(c *pgtest.FakeConn) { c.Frame('D', 1<<31-1, []byte(long)); c.Close() }, "", "cut"},
	}
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		db := c.Login()["database"]
		for {
			sql := c.Query()
			if a, hostile := attacks[db]; hostile && sql == "attack" {
				a.answer(c)
				c.AwaitEnd()
				return
			}
			c.Answer(sql)
		}
	}, func(_ *Settings, r *Route) { r.DBName, r.Pool.Size = r.Database, 2 })
	bystander := p.call()
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			same := p.raw(t).send(hello("user", "app", "database", name))
			same.until('Z')
			r := p.raw(t).send(hello("user", "app", "database", name))
			r.until('Z')
			violations := p.state().Counters.ServerViolations
			r.send(packet('Q', "attack\x00"))
			switch a.want {
			case "": // the answer is whole; what follows must find nobody who could take it for his
				r.until('Z')
				p.await("it was noticed", func(s Snapshot) bool { return s.Counters.ServerViolations > violations })
			case "cut":
				cutShort(t, r)
			default:
				r.refusedAfter(a.before, "08P01", a.want)
			}
			undisturbed(t, bystander)
			if got := same.ask("select 7"); got != "select 7" {
				t.Errorf("another client of the same pool got %q", got)
			}
			_ = same.conn.Close()
			_ = r.conn.Close()
		})
	}
	p.quiet(t, 1)
	p.await("hostile connections are gone", func(s Snapshot) bool {
		for _, ps := range s.Pools {
			if ps.Stats.Active+ps.Stats.Testing+ps.Stats.Closing > 0 {
				return false
			}
		}
		return true
	})
}

// cutShort expects the end in the middle of a message, where nothing can be said.
func cutShort(t *testing.T, r *raw) {
	t.Helper()
	var all bytes.Buffer
	_, _ = all.ReadFrom(r.conn)
	if bytes.Contains(all.Bytes(), []byte("crashed")) {
		t.Errorf("an error was put into the middle of a message: %q", all.Bytes()[max(0, all.Len()-100):])
	}
}

func TestServersThatCloseAtAnyByteHurtNobodyElse(t *testing.T) {
	pgtest.CheckLeaks(t)
	login := len(packet('R', "\x00\x00\x00\x00")) + len(packet('S', "server_version\x0015.0\x00")) + len(packet('K', "12345678")) + len(packet('Z', "I"))
	whole := append(append(append(packet('T', "\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x19\xff\xff\xff\xff\xff\xff\x00\x00"),
		packet('D', "\x00\x01\x00\x00\x00\x017")...), packet('C', "SELECT 1\x00")...), packet('Z', "I")...)
	var seen sync.Map
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		params := c.Startup()
		var cut int
		if _, err := fmt.Sscanf(params["database"], "cut%d", &cut); err == nil {
			if _, again := seen.LoadOrStore(cut, true); !again {
				c.CloseAfter(cut)
			}
		}
		c.AuthOK()
		c.ParameterStatus("server_version", "15.0")
		c.KeyData(1, []byte("5678"))
		c.Ready('I')
		for {
			c.Query()
			c.Raw(whole)
		}
	}, func(_ *Settings, r *Route) { r.DBName, r.Pool.LoginRetry = r.Database, 100*time.Millisecond })
	bystander := p.call()
	var wg sync.WaitGroup
	for cut := range login + len(whole) {
		wg.Go(func() {
			name := fmt.Sprintf("cut%d", cut)
			r := p.raw(t).send(hello("user", "app", "database", name))
			r.until('Z') // a login that is cut is tried again
			r.send(packet('Q', "select 7\x00"))
			var all bytes.Buffer
			switch {
			case cut < login:
				for r.ask("select 7") != "7" { // the rest of the first answer comes first
				}
			case cut == login: // before the query or after it: this client may have been linked, or not
				_, _ = r.hear()
			default:
				_, _ = all.ReadFrom(r.conn)
				got := all.Bytes()
				told := bytes.HasSuffix(got, pgFatal("08P01", "server conn crashed?"))
				if want := !midMessage(whole, cut-login); told != want {
					t.Errorf("cut after %d bytes, and told is %v, want %v: %q", cut, told, want, got)
				}
			}
			_ = r.conn.Close()
			// The next client gets a new server connection.
			r = p.raw(t).send(hello("user", "app", "database", name))
			r.until('Z')
			if got := r.ask("select 7"); got != "7" {
				t.Errorf("cut after %d bytes: the next client got %q", cut, got)
			}
			_ = r.conn.Close()
		})
	}
	wg.Wait()
	if got := bystander.must("select 7"); got != "7" {
		t.Errorf("the bystander got %q", got)
	}
	p.quiet(t, 1)
}

func pgFatal(code, message string) []byte {
	b, err := (&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: code, Message: message}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// midMessage tells whether the first n bytes of the messages in b leave a client in the middle of one. Headers are
// forwarded whole, and so are ReadyForQuery and a short CommandComplete.
func midMessage(b []byte, n int) bool {
	for at := 0; at < len(b); at += 1 + int(b[at+4]) {
		if n > at && n < at+1+int(b[at+4]) {
			return b[at] != 'Z' && b[at] != 'C' && n >= at+5
		}
	}
	return false
}

// S43
func TestServersThatRefuseForGoodTellAllWhoWait(t *testing.T) {
	for _, c := range []struct{ code, text string }{
		{"28P01", `password authentication failed for user "app"`},
		{"3D000", `database "app" does not exist`},
		{"28000", "no pg_hba.conf entry"},
		{"XX000", strings.Repeat("very long ", 1000)},
	} {
		t.Run(c.code, func(t *testing.T) {
			var refuse atomic.Bool
			refuse.Store(true)
			release := make(chan struct{})
			p, _ := pooledFake(t, func(conn *pgtest.FakeConn) {
				conn.Startup()
				if refuse.Load() {
					<-release
					conn.Error("FATAL", c.code, c.text)
					return
				}
				conn.Welcome()
				echoQueries(conn)
			}, func(_ *Settings, r *Route) { r.Pool.MaxConnecting, r.Pool.LoginRetry = 1, 100*time.Millisecond })
			var waiters []*raw
			for range 5 {
				waiters = append(waiters, p.raw(t).send(hello("user", "app", "database", "app")))
			}
			p.await("all wait", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Waiting == 5 })
			close(release)
			for _, w := range waiters {
				w.refused(c.code, "server login failed: "+c.text)
			}
			refuse.Store(false)
			for { // it is not for ever
				_, err := tryCall(t, p.Addr)
				if err == nil {
					break
				}
				if !strings.Contains(err.Error(), "server login has been failing, cached error: "+c.text+" (server_login_retry)") {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestAServerThatClosesBehindItsAnswerLeavesNobodyWaiting(t *testing.T) {
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		c.Query()
		// The answer and the end arrive together.
		c.Raw(append(append(packet('D', "\x00\x01\x00\x00\x00\x017"), packet('C', "SELECT 1\x00")...), packet('Z', "I")...))
	}, func(_ *Settings, r *Route) { r.Pool.Size = 1 })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				r := p.raw(t).login()
				if got := r.ask("select 7"); got != "7" && !strings.Contains(got, "crashed") {
					t.Errorf("got %q", got)
				}
				_ = r.conn.Close()
			}
		})
	}
	wg.Wait()
	p.quiet(t, 0)
}

// S11
func TestAnswersInTheWrongOrderEndTheirConnection(t *testing.T) {
	pgtest.CheckLeaks(t)
	order := map[string]string{ // what is answered, and the type that is one too many
		"2": "2", "11": "1", "121": "1", "12C": "C", "12s": "s", "12D": "D", "12TT": "T", "12n2": "2", "12T3": "3", "12tT1": "1", "1Z": "Z", "12TCC": "C", "12TCT": "T", "V": "V", "12TI1": "1",
	}
	p, _ := pooledFake(t, func(c *pgtest.FakeConn) {
		kinds := c.Login()["database"]
		for {
			if _, ok := c.Receive().(*pgproto3.Sync); !ok {
				continue
			}
			for _, k := range []byte(kinds) {
				body := ""
				if k == 'Z' {
					body = "I"
				}
				c.Raw(packet(k, body))
			}
			c.AwaitEnd()
			return
		}
	}, func(_ *Settings, r *Route) { r.DBName = r.Database })
	batch := bytes.Join([][]byte{
		packet('P', "\x00select 1\x00\x00\x00"), packet('B', "\x00\x00\x00\x00\x00\x00\x00\x00"), packet('D', "P\x00"), packet('E', "\x00\x00\x00\x00\x00"), packet('S', ""),
	}, nil)
	for kinds, wrong := range order {
		t.Run(kinds, func(t *testing.T) {
			r := p.raw(t).send(hello("user", "app", "database", kinds))
			r.until('Z')
			r.send(batch)
			before, errs := r.ending()
			if want := "server sent message '" + wrong + "' where the protocol does not allow it"; len(errs) != 1 || errs[0].Message != want {
				t.Errorf("got %+v\nwant %s", errs, want)
			}
			if want := kinds[:len(kinds)-1] + "E"; before != want {
				t.Errorf("got messages %q, want %q", before, want)
			}
		})
	}
	p.quiet(t, 0)
}
