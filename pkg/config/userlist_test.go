package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestUserlistsAreReadAsPgBouncerReadsThem(t *testing.T) {
	long := strings.Repeat("x", maxUser)
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"two users", "\"a\" \"b\"\n\"c\" \"d\"\n", "a=b c=d"},
		{"no last newline, CRLF, byte order mark", "\ufeff\"a\" \"b\"\r\n\"c\" \"d\"", "a=b c=d"},
		{"comments and blank lines", "; x\n\n  ; \"y\" \"z\"\n  \"a\" \"b\" rest \"is\" ignored\n", "a=b"},
		{"doubled quotes", `"a""b" "c""""d"`, `a"b=c""d`},
		{"an empty secret", `"a" ""`, "a="},
		{"a later line wins", "\"a\" \"b\"\n\"a\" \"c\"", "a=c"},
		{"anything between user and secret", `"a":"b"`, "a=b"},
		{"a secret on the next line", "\"a\"\n\"b\"\n", "a=b"},
		{"case and dots", `"A.b" "x"`, "A.b=x"},
		{"the longest name", `"` + long + `" "x"`, long + "=x"},
		{"a longer name", `"` + long + `x" "x"`, "line 1: the user is longer than 127 bytes"},
		{"a longer secret", "\n\"a\" \"" + strings.Repeat("x", maxSecret+1) + `"`, "line 2: the secret is longer than 65531 bytes"},
		{"no quotes", "\"a\" \"b\"\nc d\n", `line 2: not of the form "user" "secret"`},
		{"an open user", "\n\n\"a", "line 3: the user has no closing quote"},
		{"no secret", `"a" b`, "line 1: the user has no secret"},
		{"an open secret", `"a" "b`, "line 1: the secret has no closing quote"},
		{"a NUL byte", "\n\"a\" \"b\x00\"", "line 2: a NUL byte"},
	} {
		users, err := ParseUserlist([]byte(c.text))
		var list []string
		for _, name := range users.Users() {
			list = append(list, name+"="+users[name].Reveal())
		}
		got := strings.Join(list, " ")
		if err != nil {
			got = err.Error()
			if users != nil {
				t.Errorf("%s: an error and %v", c.name, users)
			}
		}
		if got != c.want {
			t.Errorf("%s: %.200s, want %.200s", c.name, got, c.want)
		}
	}
}

// FuzzUserlist: what was read can be written down and reads the same; names and secrets keep their bounds.
func FuzzUserlist(f *testing.F) {
	for _, seed := range []string{"", `"a" "b"`, ";c\n\"a\"\"b\" \"\"\n", "\"a\" x \"b", "\ufeff\"\" \"\"\r\n\"a\"\"\"\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		users, err := ParseUserlist(data)
		if err != nil {
			return
		}
		var b strings.Builder
		double := func(s string) string { return strings.ReplaceAll(s, `"`, `""`) }
		for _, name := range users.Users() {
			secret := users[name].Reveal()
			if len(name) > maxUser || len(secret) > maxSecret || strings.ContainsRune(name+secret, 0) {
				t.Fatalf("user %q, secret %q", name, secret)
			}
			fmt.Fprintf(&b, "\"%s\" \"%s\"\n", double(name), double(secret))
		}
		again, err := ParseUserlist([]byte(b.String()))
		if err != nil || !reflect.DeepEqual(users, again) {
			t.Fatalf("%q reads otherwise than %q: %v", b.String(), data, err)
		}
	})
}
