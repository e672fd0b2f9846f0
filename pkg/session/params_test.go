package session

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pgwire"
)

func TestTrackedNamesKeepOneSpelling(t *testing.T) {
	tracked := NewTracked([]string{"IntervalStyle", "datestyle", "", "search_path", "INTERVALSTYLE", "my.setting"})
	for name, want := range map[string]string{
		"client_encoding": "client_encoding", "DATESTYLE": "DateStyle", "timezone": "TimeZone", "TimeZone": "TimeZone",
		"application_name": "application_name", "Standard_Conforming_Strings": "standard_conforming_strings",
		"intervalstyle": "IntervalStyle", "Search_Path": "search_path", "MY.Setting": "my.setting",
	} {
		if got, ok := tracked.Canonical(name); !ok || got != want {
			t.Errorf("%s is tracked as %q, %v, want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "server_version", "DateStyles", "date_style", "my", "setting", "search_path "} {
		if got, ok := tracked.Canonical(name); ok {
			t.Errorf("%q is tracked as %q", name, got)
		}
	}
	before := slices.Clone(AlwaysTracked)
	NewTracked([]string{"another"})
	if !slices.Equal(AlwaysTracked, before) {
		t.Errorf("a set of names has changed AlwaysTracked to %q", AlwaysTracked)
	}
}

func TestTheLastOfTwoValuesCounts(t *testing.T) {
	p := MakeParams([]pgwire.Parameter{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "b", Value: "3"}, {Name: "c", Value: ""}})
	want := []pgwire.Parameter{{Name: "a", Value: "2"}, {Name: "b", Value: "3"}, {Name: "c", Value: ""}}
	if got := p.All(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, ok := p.Get("c"); !ok || got != "" {
		t.Errorf("an empty value is %q, %v", got, ok)
	}
	if _, ok := p.Get("B"); ok {
		t.Error("Get has found another spelling")
	}
}

func TestMissingIsWhatMustBeSet(t *testing.T) {
	set := func(kv ...string) Params {
		var p Params
		for i := 0; i < len(kv); i += 2 {
			p = p.With(kv[i], kv[i+1])
		}
		return p
	}
	for name, c := range map[string]struct{ have, want, missing Params }{
		"nothing is wanted":          {set("a", "1"), set(), set()},
		"the same":                   {set("a", "1"), set("a", "1"), set()},
		"all":                        {set(), set("a", "1", "b", "2"), set("a", "1", "b", "2")},
		"more than is wanted":        {set("a", "1", "b", "2"), set("b", "2"), set()},
		"another value":              {set("a", "1", "b", "2"), set("a", "1", "b", "3"), set("b", "3")},
		"a value in another case":    {set("a", "x"), set("a", "X"), set("a", "X")},
		"an empty value":             {set("a", "1"), set("a", ""), set("a", "")},
		"an empty one for none":      {set(), set("a", ""), set("a", "")},
		"a value that is a name":     {set("a", "b", "b", "a"), set("b", "b"), set("b", "b")},
		"a name that begins another": {set("ab", "1"), set("a", "1"), set("a", "1")},
	} {
		if got := c.have.Missing(c.want); !slices.Equal(got, c.missing.All()) {
			t.Errorf("%s: got %v, want %v", name, got, c.missing.All())
		}
	}
}

// Params against the obvious: a map.
func TestParamsBehaveAsAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	words := []string{"", "a", "b", "ab", "A", "DateStyle", "ISO, MDY", "ü", "'", `\`, "x\ny"}
	word := func() string { return words[rng.IntN(len(words))] }
	type pair struct {
		p Params
		m map[string]string
	}
	pairs := []pair{{m: map[string]string{}}}
	for range 1000 {
		from := pairs[rng.IntN(len(pairs))]
		to := pair{from.p, maps.Clone(from.m)}
		switch rng.IntN(3) {
		case 0:
			over := pairs[rng.IntN(len(pairs))]
			to.p = to.p.Over(over.p)
			maps.Copy(to.m, over.m)
		default:
			name, value := word(), word()
			to.p = to.p.With(name, value)
			to.m[name] = value
		}
		var list []pgwire.Parameter
		for _, name := range slices.Sorted(maps.Keys(to.m)) {
			list = append(list, pgwire.Parameter{Name: name, Value: to.m[name]})
			if got, ok := to.p.Get(name); !ok || got != to.m[name] {
				t.Fatalf("%v: Get(%q) is %q, %v", to.m, name, got, ok)
			}
		}
		if got := to.p.All(); !slices.Equal(got, list) {
			t.Fatalf("All is %v, want %v", got, list)
		}
		if MakeParams(list) != to.p {
			t.Fatalf("%v: sets made in another way are not equal", to.m)
		}
		for _, other := range pairs {
			if (other.p == to.p) != maps.Equal(other.m, to.m) {
				t.Fatalf("%v and %v: == is %v", other.m, to.m, other.p == to.p)
			}
			missing := to.p.Missing(other.p)
			for _, kv := range other.p.All() {
				have, ok := to.m[kv.Name]
				if slices.Contains(missing, kv) == (ok && have == kv.Value) {
					t.Fatalf("%v misses %v of %v", to.m, missing, other.m)
				}
			}
			// What is missing is all that is needed.
			if still := to.p.Over(MakeParams(missing)).Missing(other.p); len(still) > 0 {
				t.Fatalf("%v with %v still misses %v", to.m, missing, still)
			}
			// And what is too much is all that must go.
			if got := to.p.Over(MakeParams(missing)).Without(to.p.Surplus(other.p)); got != other.p {
				t.Fatalf("%v became %v on the way to %v", to.m, got.All(), other.m)
			}
		}
		if pairs = append(pairs, to); len(pairs) > 10 {
			pairs = slices.Delete(pairs, 0, 1)
		}
	}
}

func TestAnUnchangedSetCostsNothing(t *testing.T) {
	p := MakeParams([]pgwire.Parameter{{Name: "DateStyle", Value: "ISO, MDY"}, {Name: "TimeZone", Value: "UTC"}})
	q := p.With("TimeZone", "UTC")
	if p != q {
		t.Error("setting the present value has made another set")
	}
	if n := testing.AllocsPerRun(100, func() {
		if p.Missing(q) != nil {
			t.Error("equal sets differ")
		}
		if v, _ := p.Get("TimeZone"); v != "UTC" {
			t.Error("wrong value")
		}
	}); n > 0 {
		t.Errorf("%v allocations for comparing and looking up", n)
	}
}

func TestSetStatementsQuote(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"DateStyle", "ISO, MDY", `SET "DateStyle" TO 'ISO, MDY';`},
		{"application_name", "", `SET "application_name" TO '';`},
		{"application_name", "it's", `SET "application_name" TO 'it''s';`},
		{"application_name", `a\b`, `SET "application_name" TO E'a\\b';`},
		{"application_name", `\'; DROP TABLE t; --`, `SET "application_name" TO E'\\''; DROP TABLE t; --';`},
		{"my.setting", "x", `SET "my"."setting" TO 'x';`},
		{`a"b`, "x", `SET "a""b" TO 'x';`},
		{`a" TO 1; DROP TABLE t; --`, "x", `SET "a"" TO 1; DROP TABLE t; --" TO 'x';`},
		{"Search_Path", `a, "B c"`, `SELECT pg_catalog.set_config('Search_Path', 'a, "B c"', false);`},
	} {
		if got := SetStatements([]pgwire.Parameter{{Name: c.name, Value: c.value}}); got != c.want {
			t.Errorf("%s = %s: got %s, want %s", c.name, c.value, got, c.want)
		}
	}
	two := []pgwire.Parameter{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}
	if got, want := SetStatements(two), `SET "a" TO '1';SET "b" TO '2';`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := SetStatements(nil) + ResetStatements(nil); got != "" {
		t.Errorf("nothing is set by %q", got)
	}
	if got, want := ResetStatements([]string{"search_path", `my.se"t`}), `RESET "search_path";RESET "my"."se""t";`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// PostgreSQL is the judge of quoting: whatever the value and whatever backslashes mean, it arrives as it is.
//
// S36
func TestPostgreSQLReadsQuotedValuesAsTheyAre(t *testing.T) {
	server := pgtest.Shared(t)
	values := []string{
		"", " ", "'", "''", "'''", `\`, `\\`, `\'`, `'\`, `\''`, `'; select 1/0; --`, `\'; select 1/0; --`, `\\'; select 1/0; --`,
		`$$`, `$1`, `"`, "line\nbreak", "tab\t", `E'x'`, `U&'\0041'`, `/* */`, `-- x`, "ü€", `\x41`, `\101`, `\n`, `a\`, "%s", ";",
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		var b strings.Builder
		for range rng.IntN(8) {
			b.WriteString([]string{"'", `\`, ";", "x", `"`, "$", "\n", "-"}[rng.IntN(8)])
		}
		values = append(values, b.String())
	}
	for _, sql := range []string{"drop database if exists quoting", "create database quoting"} {
		if err := server.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, conforming := range []string{"on", "off"} {
		for _, guard := range []string{"on", "off", "safe_encoding"} {
			// Before the session: a query is read as a whole, with the settings from before it.
			for _, setting := range []string{"standard_conforming_strings = " + conforming, "backslash_quote = " + guard, "escape_string_warning = off"} {
				if err := server.Exec(t.Context(), "alter database quoting set "+setting); err != nil {
					t.Fatal(err)
				}
			}
			var sql strings.Builder
			for _, v := range values {
				sql.WriteString(SetStatements([]pgwire.Parameter{{Name: "my.setting", Value: v}}))
				sql.WriteString("select current_setting('my.setting');")
			}
			rows, err := server.QueryIn(t.Context(), "quoting", sql.String())
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != len(values) {
				t.Fatalf("%d values were set and %d came back", len(values), len(rows))
			}
			for i, v := range values {
				if rows[i][0] != v {
					t.Errorf("conforming strings %s, backslash_quote %s: %q was set as %q", conforming, guard, v, rows[i][0])
				}
			}
		}
	}
}

// A client's value is what it would have been in its startup packet, also for lists of names.
//
// S36
func TestPostgreSQLReadsListsAsLists(t *testing.T) {
	server := pgtest.Shared(t)
	for _, kv := range []pgwire.Parameter{
		{Name: "search_path", Value: `pg_catalog, "My Schema", public`},
		{Name: "temp_tablespaces", Value: `pg_default, pg_default`},
		{Name: "DateStyle", Value: "SQL, DMY"},
		{Name: "TimeZone", Value: "Europe/Berlin"},
		{Name: "TimeZone", Value: "<+0530>-05:30"},
		{Name: "IntervalStyle", Value: "sql_standard"},
		{Name: "client_encoding", Value: "LATIN1"},
		{Name: "standard_conforming_strings", Value: "off"},
		{Name: "application_name", Value: `psql's "own"`},
	} {
		rows, err := server.Query(t.Context(), SetStatements([]pgwire.Parameter{kv})+"show "+kv.Name)
		if err != nil {
			t.Errorf("%s = %s: %v", kv.Name, kv.Value, err)
		} else if got := rows[len(rows)-1][0]; got != kv.Value {
			t.Errorf("%s = %s was set as %s", kv.Name, kv.Value, got)
		}
	}
}
