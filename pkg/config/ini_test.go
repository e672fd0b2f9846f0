package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestConnectionStrings(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"  \t ", ""},
		{"host=h", "host=h"},
		{"host=h port=1", "host=h|port=1"},
		{"\thost\t=\th   port = 1 ", "host=h|port=1"},
		{"password='a b''c=d'", "password=a b'c=d"},
		{"password=a=b== host=h", "password=a=b==|host=h"},
		{"password=a'b", "password=a'b"},
		{"host= port=1", "host=port=1"}, // as PgBouncer reads it: blanks may stand before a value
		{"host='' port=1", `the value of "host" is empty`},
		{"host=", `the value of "host" is empty`},
		{"host", "setting 1 is not key=value"},
		{"host=h port", "setting 2 is not key=value"},
		{"=h", "setting 1 is not key=value"},
		{"host='h", `the value of "host" has no closing quote`},
		{"host='h''", `the value of "host" has no closing quote`},
		{"host='h'x", `the value of "host" goes on after its closing quote`},
	} {
		pairs, err := parseConnString(c.text)
		got := joinPairs(pairs)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func joinPairs(pairs []pair) string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.key+"="+p.text)
	}
	return strings.Join(list, "|")
}

func TestIncludesAreBounded(t *testing.T) {
	fs := files{"deep.ini": "[pgbouncer]\nauth_type=trust\n%include 1\n", "wide.ini": "[pgbouncer]\nauth_type=trust\n%include w1\n"}
	for i := range 20 {
		fs[fmt.Sprint(i)] = fmt.Sprintf("%%include %d\n", i+1)
		// each of these doubles the number of files
		fs[fmt.Sprintf("w%d", i)] = strings.Repeat(fmt.Sprintf("%%include w%d\n", i+1), 2)
	}
	fs["w15"] = ""
	for file, want := range map[string]string{"deep.ini": `15:1: %include "16" goes too deep`, "wide.ini": `goes too deep; allowed: 16 levels and 1000 files`} {
		_, err := Load(Input{Args: []string{file}, Read: fs.read})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %.200v", file, err)
		}
	}
}

// FuzzINI: what a file says survives being written down again in the plainest form, and problems stay within the file.
func FuzzINI(f *testing.F) {
	f.Add([]byte("[pgbouncer]\nauth_type = trust\n[databases]\n* = host=h\n"))
	f.Add([]byte("\ufeff[pgbouncer] a=b\r\n;c\n#d\n['x' = y\n[users]\n'q''q' = a='b''c' d=e\n\"w\" =\n"))
	f.Add([]byte("a=b\n[peers]\n1 = host=h port=2\n1 = host=i\n[nope]\nx=\n%include self\n%include other\n%include\n"))
	f.Add([]byte("[databases]\n\x00\na\t=\tb=c\n[databases\n[users]x=y=z\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := files{"other": "[databases]\nincluded = host=o\n"}.read
		var ps Problems
		doc := parseINI("self", data, read, &ps)
		lines := strings.Count(string(data), "\n") + 1
		for _, p := range ps {
			if p.Where.Name == "self" && (p.Where.Line < 0 || p.Where.Line > lines) {
				t.Fatalf("problem outside the file: %v", p)
			}
		}
		var again Problems
		rewritten := writeINI(doc)
		second := parseINI("self", []byte(rewritten), read, &again)
		if len(again) > 0 {
			t.Fatalf("written down again:\n%s\n%v", rewritten, again)
		}
		if !reflect.DeepEqual(withoutPlaces(doc), withoutPlaces(second)) {
			t.Fatalf("got %v, then %v from:\n%s", withoutPlaces(doc), withoutPlaces(second), rewritten)
		}
		// The whole way through must hold as well, whatever it says.
		if c, err := Load(Input{Args: []string{"self.ini"}, Read: files{"self.ini": string(data), "other": ""}.read}); err == nil {
			rendered(c)
		}
	})
}

// writeINI writes every value quoted where the grammar knows quotes.
func writeINI(doc document) string {
	var b strings.Builder
	b.WriteString("[pgbouncer]\n")
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	for _, p := range doc.settings {
		fmt.Fprintf(&b, "%s = %s\n", quote(p.key), p.text)
	}
	for _, section := range []struct {
		name    string
		entries []entry
	}{{"databases", doc.databases}, {"users", doc.users}, {"peers", doc.peers}} {
		fmt.Fprintf(&b, "[%s]\n", section.name)
		for _, e := range section.entries {
			fmt.Fprintf(&b, "%s = %s\n", quote(e.name), writeConnString(e.pairs))
		}
	}
	return b.String()
}

func writeConnString(pairs []pair) string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.key+"='"+strings.ReplaceAll(p.text, "'", "''")+"'")
	}
	return strings.Join(list, " ")
}

func withoutPlaces(doc document) [][]string {
	all := [][]string{{joinPairs(doc.settings)}}
	for _, entries := range [][]entry{doc.databases, doc.users, doc.peers} {
		var list []string
		for _, e := range entries {
			list = append(list, e.name+": "+joinPairs(e.pairs))
		}
		all = append(all, list)
	}
	return all
}

// FuzzConnString: what was read can be written down and reads the same; no key holds what would end it.
func FuzzConnString(f *testing.F) {
	for _, seed := range []string{"", "host=h port=1", "password='a b''c'", "a =\tb", "a=b=c d=''", "x='", "é=ü \t y='\t'"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pairs, err := parseConnString(text)
		if err != nil {
			if pairs != nil {
				t.Fatalf("%q: an error and %v", text, pairs)
			}
			return
		}
		for _, p := range pairs {
			if p.key == "" || p.text == "" || strings.ContainsAny(p.key, "= \t") {
				t.Fatalf("%q: pair %q=%q", text, p.key, p.text)
			}
		}
		again, err := parseConnString(writeConnString(pairs))
		if err != nil || !slices.Equal(pairs, again) {
			t.Fatalf("%q: %v, then %v, %v", text, pairs, again, err)
		}
	})
}
