package config

import (
	"strings"
	"testing"
)

func TestReloadSaysWhatItBrings(t *testing.T) {
	const base = "auth_type: trust\ndatabases: [{name: a, host: h, user: u, password: p}, {name: b, host: h}]\nusers: [{name: u, pool_size: 1}]\npeers: [{name: 1, host: h}]\n"
	for _, c := range []struct{ name, old, next, want string }{
		{"nothing", base, base, ""},
		{"comments and spelling", base, "# new\n" + strings.Replace(base, "trust", "TRUST", 1), ""},
		{"blank is the default", base, base + "pool_mode:\n", ""},
		{"a setting", base, base + "pool_mode: session\n", "applied pool_mode"},
		{"a fixed setting", base, base + "listen_port: 1\nmax_client_conn: 1\n", "applied max_client_conn; restart listen_port"},
		{"a list", base, base + "listen_addr: 127.0.0.1\n", "restart listen_addr"},
		{"a database goes", base, strings.Replace(base, ", {name: b, host: h}", "", 1), "removed b"},
		{"a database comes", base, strings.Replace(base, "{name: b", "{name: c, host: h}, {name: b", 1), `applied databases "c": added`},
		{"a database grows", base, strings.Replace(base, "name: b", "name: b, pool_size: 3", 1), `applied databases "b": pool_size`},
		{"a database moves", base, strings.Replace(base, "name: b, host: h", "name: b, host: i", 1), `applied databases "b": host; recycle b`},
		{"a password", base, strings.Replace(base, "password: p", "password: q", 1), `applied databases "a": password; recycle a`},
		{"order alone", base, strings.Replace(base, "[{name: a, host: h, user: u, password: p}, {name: b, host: h}]", "[{name: b, host: h}, {name: a, host: h, user: u, password: p}]", 1), ""},
		{"a user changes", base, strings.Replace(base, "pool_size: 1", "pool_size: 2", 1), `applied users "u": pool_size`},
		{"a user goes", base, strings.Replace(base, "[{name: u, pool_size: 1}]", "[]", 1), `applied users "u": removed`},
		{"a user comes", base, strings.Replace(base, "pool_size: 1}", "pool_size: 1}, {name: v}", 1), `applied users "v": added`},
		{"a peer moves", base, strings.Replace(base, "name: 1, host: h", "name: 1, host: i", 1), `applied peers "1": host`},
	} {
		_, ch := mustLoad(t, c.old).Reload(mustLoad(t, c.next))
		var parts []string
		for _, p := range []struct {
			word string
			list []string
		}{{"applied", ch.Applied}, {"restart", ch.NeedRestart}, {"removed", ch.Removed}, {"recycle", ch.Recycle}} {
			if len(p.list) > 0 {
				parts = append(parts, p.word+" "+strings.Join(p.list, ", "))
			}
		}
		if got := strings.Join(parts, "; "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if ch.None() != (c.want == "") {
			t.Errorf("%s: None is %v", c.name, ch.None())
		}
	}
}

func TestAfterReloadFixedSettingsStandAsTheyRun(t *testing.T) {
	old := mustLoad(t, "listen_port: 7000\nmax_client_conn: 1\n")
	next := mustLoad(t, "max_client_conn: 2\n\nlisten_port: 8000\n")
	merged, _ := old.Reload(next)
	if merged.Listen.Port != 7000 || merged.Limits.Clients != 2 {
		t.Errorf("port %d, clients %d", merged.Listen.Port, merged.Limits.Clients)
	}
	if got := merged.Origin("listen_port").String(); got != "c.yaml:1" {
		t.Errorf("listen_port is said to come from %s", got)
	}
	if next.Listen.Port != 8000 || old.Limits.Clients != 1 {
		t.Error("an input was changed")
	}
	// A second reload of the same file still names what waits for a restart.
	if _, ch := merged.Reload(next); len(ch.NeedRestart) != 1 || len(ch.Applied) != 0 {
		t.Errorf("the second time: %+v", ch)
	}
}

func TestReloadSeesTheContentOfTheUserlist(t *testing.T) {
	load := func(list string) *Config {
		c, err := Load(Input{Args: []string{"--auth_file=u"}, Read: files{"u": list}.read})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if _, ch := load(`"a" "b"`).Reload(load(`"a" "b" `)); !ch.None() {
		t.Errorf("the same secrets: %+v", ch)
	}
	if _, ch := load(`"a" "b"`).Reload(load(`"a" "c"`)); strings.Join(ch.Applied, ",") != "auth_file content" {
		t.Errorf("another secret: %+v", ch)
	}
}
