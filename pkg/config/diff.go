package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Changes is what a reload brings.
type Changes struct {
	Applied     []string // settings and entries that take their new value
	NeedRestart []string // settings that were changed but keep their value until a restart
	Removed     []string // names of database entries that are gone
	Recycle     []string // names of database entries whose present server connections point to the wrong place or user
}

// None tells that both configurations are the same.
func (ch Changes) None() bool { return len(ch.Applied)+len(ch.NeedRestart)+len(ch.Removed) == 0 }

// Reload compares the running configuration with a freshly loaded one. The result is the new one, but with the settings
// that are fixed at start as they run: what it says is always what is in force.
func (c *Config) Reload(next *Config) (*Config, Changes) {
	var ch Changes
	merged := *next
	merged.origins = make(map[string]Origin, len(next.origins))
	for _, s := range globals {
		merged.origins[s.key] = next.origins[s.key]
		if same(s.value(c), s.value(next)) {
			continue
		}
		if s.is(fixed) {
			s.value(&merged).Set(s.value(c))
			merged.origins[s.key] = c.origins[s.key]
			ch.NeedRestart = append(ch.NeedRestart, s.key)
			continue
		}
		ch.Applied = append(ch.Applied, s.key)
	}
	ch.Applied = append(ch.Applied, keepTLS("client_tls_", &c.TLS.Client.TLSSide, &merged.TLS.Client.TLSSide, ch.Applied)...)
	ch.Applied = append(ch.Applied, keepTLS("server_tls_", &c.TLS.Server, &merged.TLS.Server, ch.Applied)...)
	if !same(reflect.ValueOf(c.Userlist), reflect.ValueOf(next.Userlist)) {
		ch.Applied = append(ch.Applied, "auth_file content")
	}
	for i := range c.Databases {
		old := &c.Databases[i]
		now := entryNamed(next.Databases, func(d *Database) bool { return d.Name == old.Name })
		if now == nil {
			ch.Removed = append(ch.Removed, old.Name)
			continue
		}
		changed := differing(perDatabase, old, now)
		for _, key := range changed {
			ch.Applied = append(ch.Applied, fmt.Sprintf("databases %q: %s", old.Name, key))
		}
		if slices.ContainsFunc(changed, movesServers) {
			ch.Recycle = append(ch.Recycle, old.Name)
		}
	}
	ch.Applied = append(ch.Applied, added("databases", c.Databases, next.Databases, func(d *Database) string { return d.Name })...)
	ch.Applied = append(ch.Applied, compare("users", perUser, c.Users, next.Users, func(u *User) string { return u.Name })...)
	ch.Applied = append(ch.Applied, compare("peers", perPeer, c.Peers, next.Peers, func(p *Peer) string { return p.Name })...)
	return &merged, ch
}

// keepTLS keeps the running side's TLS where nothing is new, and tells when only its files are.
func keepTLS(prefix string, running, next *TLSSide, applied []string) []string {
	switch {
	case running.material.digest == next.material.digest:
		next.material = running.material
	case !slices.ContainsFunc(applied, func(key string) bool { return strings.HasPrefix(key, prefix) }):
		return []string{prefix + "* files' content"}
	}
	return nil
}

// movesServers tells which settings of a database make present server connections wrong.
func movesServers(key string) bool {
	switch key {
	case "host", "port", "dbname", "user", "password", "connect_query", "auth_dbname", "auth_query", "load_balance_hosts", "target_session_attrs",
		"client_encoding", "datestyle", "timezone", "application_name":
		return true
	}
	return false
}

// compare names what is added, removed and changed between two lists of entries.
func compare[T any](kind string, table []setting[T], old, next []T, name func(*T) string) []string {
	var list []string
	for i := range old {
		was := &old[i]
		now := entryNamed(next, func(e *T) bool { return name(e) == name(was) })
		if now == nil {
			list = append(list, fmt.Sprintf("%s %q: removed", kind, name(was)))
			continue
		}
		for _, key := range differing(table, was, now) {
			list = append(list, fmt.Sprintf("%s %q: %s", kind, name(was), key))
		}
	}
	return append(list, added(kind, old, next, name)...)
}

func added[T any](kind string, old, next []T, name func(*T) string) []string {
	var list []string
	for i := range next {
		if entryNamed(old, func(e *T) bool { return name(e) == name(&next[i]) }) == nil {
			list = append(list, fmt.Sprintf("%s %q: added", kind, name(&next[i])))
		}
	}
	return list
}

func entryNamed[T any](list []T, is func(*T) bool) *T {
	for i := range list {
		if is(&list[i]) {
			return &list[i]
		}
	}
	return nil
}

func differing[T any](table []setting[T], a, b *T) []string {
	var list []string
	for _, s := range table {
		if !same(s.value(a), s.value(b)) {
			list = append(list, s.key)
		}
	}
	return list
}

// same compares by content, also behind pointers, and the texts of secrets.
func same(a, b reflect.Value) bool { return reflect.DeepEqual(a.Interface(), b.Interface()) }
