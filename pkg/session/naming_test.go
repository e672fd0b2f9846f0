package session

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// tracking is a connection that may have so many statements of the registry, with a client.
func tracking(registry *Statements, limit int) (*Link, *Names) {
	l, n := &Link{}, NewNames(registry)
	l.Reset()
	l.Track(registry, limit)
	l.Serve(&n)
	return l, &n
}

func receive(t *testing.T, l *Link, types string) {
	t.Helper()
	for _, typ := range []byte(types) {
		if _, err := l.Received(typ, pgwire.StatusIdle); err != nil {
			t.Fatal(err)
		}
	}
}

func (n Naming) String() string {
	text := n.Name
	if n.Local {
		text = "local"
	}
	if n.Prepare != nil {
		text = "prepare " + n.Prepare.Name() + ", " + text
	}
	if n.Evict != nil {
		text = "close " + n.Evict.Name() + ", " + text
	}
	return text
}

func expect(t *testing.T, what string, got Naming, want string) {
	t.Helper()
	if got.String() != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// S10, S18, S19
func TestAStatementIsPreparedOnceOnEachConnection(t *testing.T) {
	var registry Statements
	l, names := tracking(&registry, 9)
	expect(t, "the first Parse", l.Parse("a", []byte("text"), Params{}), "pgberth_1")
	receive(t, l, "1")
	expect(t, "the same text", l.Parse("b", []byte("text"), Params{}), "local")
	if typ, ok := l.Local(); !ok || typ != pgwire.ParseComplete {
		t.Errorf("the answer is %c, %v", typ, ok)
	}
	expect(t, "a Bind", l.Use(pgwire.Bind, []byte("b"), Params{}), "pgberth_1")
	other := &Link{}
	other.Reset()
	other.Track(&registry, 9)
	other.Serve(names)
	expect(t, "a Bind elsewhere", other.Use(pgwire.Bind, []byte("b"), Params{}), "prepare pgberth_1, pgberth_1")
	if mine, err := other.Received(pgwire.ParseComplete, 0); !mine || err != nil {
		t.Errorf("the answer to the pooler's own Parse is the client's: %v, %v", mine, err)
	}
	if mine, err := other.Received(pgwire.BindComplete, 0); mine || err != nil {
		t.Errorf("the answer to the client's Bind is the pooler's: %v, %v", mine, err)
	}
	expect(t, "another setting", other.Parse("c", []byte("text"), MakeParams([]pgwire.Parameter{{Name: "DateStyle", Value: "German"}})), "pgberth_2")
}

// S23, M1
func TestTheStatementUnusedForLongestMakesRoom(t *testing.T) {
	var registry Statements
	l, _ := tracking(&registry, 2)
	for i, want := range []string{"pgberth_1", "pgberth_2", "close pgberth_1, pgberth_3"} {
		expect(t, "Parse", l.Parse(fmt.Sprint(i), []byte{byte(i)}, Params{}), want)
	}
	expect(t, "a Bind", l.Use(pgwire.Bind, []byte("1"), Params{}), "pgberth_2")
	expect(t, "a Bind of the one that is gone", l.Use(pgwire.Bind, []byte("0"), Params{}), "close pgberth_3, prepare pgberth_1, pgberth_1")
}

// S13, M5
func TestAnErrorUndoesWhatItSkips(t *testing.T) {
	var registry Statements
	l, names := tracking(&registry, 2)
	l.Parse("kept", []byte("kept"), Params{})
	_ = l.Sent(pgwire.Sync)
	receive(t, l, "1Z")
	l.Parse("wrong", []byte("wrong"), Params{})
	l.CloseStatement([]byte("kept"))
	l.Parse("late", []byte("late"), Params{}) // evicts
	_ = l.Sent(pgwire.Sync)
	if !l.Unsure() {
		t.Error("the next batch does not wait for what this one comes to")
	}
	receive(t, l, "EZ")
	if l.Unsure() || names.Len() != 1 || l.Prepared() != 1 || registry.Len() != 1 {
		t.Errorf("unsure %v; %d names, %d prepared, %d statements are left, want one of each", l.Unsure(), names.Len(), l.Prepared(), registry.Len())
	}
	expect(t, "a Bind of what was there before", l.Use(pgwire.Bind, []byte("kept"), Params{}), "pgberth_1")
	expect(t, "a Bind of what failed", l.Use(pgwire.Bind, []byte("wrong"), Params{}), "wrong")
}

func TestANameLikeThePoolersOwnReachesNoStatement(t *testing.T) {
	var registry Statements
	l, _ := tracking(&registry, 2)
	l.Parse("a", []byte("text"), Params{})
	expect(t, "a Bind", l.Use(pgwire.Bind, []byte("pgberth_1"), Params{}), "pgberth_1 ")
	expect(t, "the client's own statement of that name", l.Parse("pgberth_1", []byte("mine"), Params{}), "pgberth_2")
	expect(t, "a Bind of it", l.Use(pgwire.Bind, []byte("pgberth_1"), Params{}), "pgberth_2")
}

func TestErrorsCallAStatementAsItsClientDoes(t *testing.T) {
	var registry Statements
	l, _ := tracking(&registry, 2)
	l.Parse("x", []byte("text"), Params{})
	l.Parse("y", []byte("text"), Params{})
	receive(t, l, "1")
	l.Local()
	l.Use(pgwire.Bind, []byte("x"), Params{})
	l.Use(pgwire.Bind, []byte("y"), Params{})
	receive(t, l, "2")
	receive(t, l, "E")
	if got := l.Translate(`"pgberth_1" is not "pgberth_12"`); got != `"y" is not "pgberth_12"` {
		t.Errorf("translated to %s", got)
	}
}

// Whatever happens, a statement is forgotten when the last client and the last connection have.
//
// M2
func TestStatementsEndWithTheirUsers(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var registry Statements
		l, names := tracking(&registry, 2)
		name := func() string { return string(rune('a' + rng.IntN(4))) }
		for range 60 {
			switch rng.IntN(10) {
			case 0, 1:
				l.Parse(name(), []byte(name()), Params{})
			case 2, 3:
				l.Use(pgwire.Bind, []byte(name()), Params{})
			case 4:
				l.CloseStatement([]byte(name()))
			case 5:
				l.Purge()
			case 6:
				l.Deallocate(name())
			case 7:
				_ = l.Sent(pgwire.Sync)
			case 8:
				work(l, rng)
			case 9:
				if n := l.Drops(name(), Params{}); n.Name == "" {
					l.SetUnnamed(pgwire.Parse)
				}
			}
		}
		names.Clear()
		l.Serve(nil)
		l.Release()
		if registry.Len() != 0 || l.Prepared() != 0 {
			t.Fatalf("seed %d: %d statements, %d prepared are left", seed, registry.Len(), l.Prepared())
		}
	}
}

// work answers some of what is outstanding, as a server might.
func work(l *Link, rng *rand.Rand) {
	for range rng.IntN(8) {
		for _, ok := l.Local(); ok; _, ok = l.Local() {
		}
		if !l.Busy() {
			return
		}
		answers := map[request]byte{
			reqParse: pgwire.ParseComplete, reqBind: pgwire.BindComplete, reqClose: pgwire.CloseComplete, reqSync: pgwire.ReadyForQuery,
			reqQuery: pgwire.ReadyForQuery,
		}
		head := l.queue[l.head].kind()
		typ := answers[head]
		switch {
		case head != reqSync && rng.IntN(5) == 0:
			typ = pgwire.ErrorResponse
		case head == reqQuery && rng.IntN(2) == 0:
			l.Deallocated()
		}
		if _, err := l.Received(typ, pgwire.StatusIdle); err != nil {
			panic(err)
		}
	}
}

func TestUsingAPreparedStatementAllocatesNothing(t *testing.T) {
	var registry Statements
	l, _ := tracking(&registry, 2)
	l.Parse("s", []byte("text"), Params{})
	_ = l.Sent(pgwire.Sync)
	receive(t, l, "1Z")
	name := []byte("s")
	if n := testing.AllocsPerRun(1000, func() {
		l.Use(pgwire.Bind, name, Params{})
		exchange(l, "ES", "2CZ")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A text that a connection has to read anew under other parameters is another statement: a literal may mean another date.
//
// S18
func TestAStatementReadUnderOtherParametersIsNotSharedWithThoseOfBefore(t *testing.T) {
	german := MakeParams([]pgwire.Parameter{{Name: "DateStyle", Value: "German"}})
	var registry Statements
	l, names := tracking(&registry, 9)
	expect(t, "a Parse", l.Parse("s", []byte("text"), Params{}), "pgberth_1")
	_ = l.Sent(pgwire.Sync)
	receive(t, l, "1Z")
	expect(t, "a Bind where it is, after a change", l.Use(pgwire.Bind, []byte("s"), german), "pgberth_1")
	other := &Link{}
	other.Reset()
	other.Track(&registry, 9)
	other.Serve(names)
	expect(t, "a Bind elsewhere", other.Use(pgwire.Bind, []byte("s"), german), "prepare pgberth_2, pgberth_2")
	names.Clear()
	l.Release()
	other.Release()
	if registry.Len() != 0 {
		t.Errorf("%d statements are left", registry.Len())
	}
}

func TestAStatementPreparedWhileAParameterChangesIsPreparedAgain(t *testing.T) {
	var registry Statements
	l, _ := tracking(&registry, 9)
	_ = l.Sent(pgwire.Query)
	l.Parse("s", []byte("text"), Params{})
	_ = l.Sent(pgwire.Sync)
	receive(t, l, "C")
	l.Changed()
	receive(t, l, "Z1Z")
	expect(t, "the same text from another", l.Parse("t", []byte("text"), Params{}), "close pgberth_1, pgberth_1")
	_ = l.Sent(pgwire.Sync)
	receive(t, l, "31Z")
	l.Changed()
	expect(t, "a Bind when nothing was prepared meanwhile", l.Use(pgwire.Bind, []byte("t"), Params{}), "pgberth_1")
}

func TestTheUnnamedStatementIsOnlyUsedByWhoSetIt(t *testing.T) {
	var registry Statements
	l, a := tracking(&registry, 9)
	b := NewNames(&registry)
	use := func(names *Names) string {
		l.Serve(names)
		switch u := l.UseUnnamed(pgwire.Bind); {
		case u.Close:
			return "close"
		case u.Prepare != nil:
			return "prepare " + string(u.Prepare)
		}
		return "as it is"
	}
	same := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
		_ = l.Sent(pgwire.Sync)
	}
	l.SetUnnamed(pgwire.Parse)
	a.KeepUnnamed([]byte("of a"))
	same("a's own", use(a), "as it is")
	receive(t, l, "12Z")
	same("another's", use(&b), "close")
	receive(t, l, "32Z")
	same("a's own, lost meanwhile", use(a), "prepare of a")
	receive(t, l, "12Z")
	_ = l.Sent(pgwire.Query) // anybody's, also the pooler's own
	receive(t, l, "CZ")
	same("after a query", use(a), "prepare of a")
	receive(t, l, "E")
	if l.UnsureUnnamed() {
		t.Error("it is known that nothing is known")
	}
	receive(t, l, "Z")
	same("after an error that has skipped it", use(a), "close")
	if !l.UnsureUnnamed() {
		t.Error("the next batch does not wait for what this one comes to")
	}
}
