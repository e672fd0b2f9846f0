package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Userlist is the content of an auth_file: each user's plain password, md5 hash or SCRAM verifier.
type Userlist map[string]Secret

const maxSecret = 65531 // bytes, as PgBouncer 1.26

// ParseUserlist reads a userlist.txt as PgBouncer does: "user" "secret" per line, doubled quotes stand for one, the rest
// of a line is ignored, lines that start with ; are comments, and a later line for the same user wins. Unlike PgBouncer,
// which keeps what it read before a broken line, it takes all or nothing. The error names the line, never its content.
func ParseUserlist(data []byte) (Userlist, error) {
	users := Userlist{}
	text := strings.TrimPrefix(string(data), "\ufeff")
	rest := text
	fail := func(format string, args ...any) (Userlist, error) {
		line := 1 + strings.Count(text[:len(text)-len(rest)], "\n")
		return nil, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...))
	}
	if i := strings.IndexByte(text, 0); i >= 0 {
		rest = text[i:]
		return fail("a NUL byte")
	}
	for {
		rest = strings.TrimLeft(rest, spaces)
		if rest == "" {
			return users, nil
		}
		if rest[0] == ';' {
			rest = afterLine(rest)
			continue
		}
		if rest[0] != '"' {
			return fail(`not of the form "user" "secret"`)
		}
		user, tail, ok := unquote(rest[1:], '"')
		if !ok {
			return fail("the user has no closing quote")
		}
		if len(user) > maxUser {
			return fail("the user is longer than %d bytes", maxUser)
		}
		// Whatever stands between user and secret is skipped, as PgBouncer does.
		start := strings.IndexByte(tail, '"')
		if start < 0 {
			return fail("the user has no secret")
		}
		secret, tail, ok := unquote(tail[start+1:], '"')
		if !ok {
			return fail("the secret has no closing quote")
		}
		if len(secret) > maxSecret {
			return fail("the secret is longer than %d bytes", maxSecret)
		}
		users[user] = NewSecret(secret)
		rest = afterLine(tail)
	}
}

func afterLine(text string) string {
	_, rest, _ := strings.Cut(text, "\n")
	return rest
}

// Users lists the names, sorted.
func (u Userlist) Users() []string { return slices.Sorted(maps.Keys(u)) }
