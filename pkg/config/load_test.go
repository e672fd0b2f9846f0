package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLaterLayersWin(t *testing.T) {
	const key = "max_client_conn"
	yes := map[bool]string{true: "given", false: "not"}
	for layers := range 8 {
		inFile, inEnv, inFlags := layers&1 != 0, layers&2 != 0, layers&4 != 0
		t.Run(fmt.Sprintf("file %s, environment %s, flag %s", yes[inFile], yes[inEnv], yes[inFlags]), func(t *testing.T) {
			in := Input{Args: []string{"c.yaml"}}
			fs := files{"c.yaml": "\n"}
			want, from := 100, "default"
			if inFile {
				fs["c.yaml"] += key + ": 201\n"
				want, from = 201, "c.yaml:2"
			}
			if inEnv {
				in.Environ = []string{"HOME=/", "PGBERTH_MAX_CLIENT_CONN=202"}
				want, from = 202, "PGBERTH_MAX_CLIENT_CONN"
			}
			if inFlags {
				in.Args = append(in.Args, "--max_client_conn=203")
				want, from = 203, "--max_client_conn"
			}
			in.Read = fs.read
			c, err := Load(in)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Origin(key).String(); c.Limits.Clients != want || got != from {
				t.Errorf("%s is %d from %s, want %d from %s", key, c.Limits.Clients, got, want, from)
			}
		})
	}
}

func TestEverySettingCanBeGivenByEnvironmentAndByFlag(t *testing.T) {
	for _, s := range globals {
		text := s.initial(dialectYAML)
		switch {
		case s.key == "auth_file":
			text = "u"
		case text == "":
			text = "/x"
		}
		for _, in := range []Input{
			{Environ: []string{"PGBERTH_" + strings.ToUpper(s.key) + "=" + text}},
			{Args: []string{"--" + s.key + "=" + text}},
			{Args: []string{"--" + s.key, text}},
		} {
			if strings.Contains(s.key, "_tls_") && !strings.HasSuffix(s.key, "sslmode") {
				// What belongs to TLS is not looked at without it.
				in.Environ = append(in.Environ, "PGBERTH_CLIENT_TLS_SSLMODE=disable", "PGBERTH_SERVER_TLS_SSLMODE=disable")
			}
			in.Read = files{"u": ""}.read
			c, err := Load(in)
			if err != nil {
				t.Errorf("%s: %v", s.key, err)
			} else if c.Origin(s.key).Source < FromEnvironment {
				t.Errorf("%s came from %s", s.key, c.Origin(s.key))
			}
		}
	}
}

func TestEnvironmentAndFlagsUnderstandDurationsEvenBesideAnINI(t *testing.T) {
	c, err := Load(Input{
		Args:    []string{"p.ini", "--server_lifetime=1m30s"},
		Environ: []string{"PGBERTH_QUERY_WAIT_TIMEOUT=500ms", "PGBERTH_SERVER_RESET_QUERY="},
		Read:    files{"p.ini": "[pgbouncer]\nauth_type=trust\nserver_idle_timeout=1.5\n"}.read,
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Server.Lifetime != 90*time.Second || c.Timeouts.QueryWait != 500*time.Millisecond || c.Server.IdleTimeout != 1500*time.Millisecond {
		t.Errorf("got %v, %v, %v", c.Server.Lifetime, c.Timeouts.QueryWait, c.Server.IdleTimeout)
	}
	if c.Server.ResetQuery != "" {
		t.Errorf("a blank variable left %q", c.Server.ResetQuery)
	}
}

func TestTheFileIsFoundByArgumentFlagOrEnvironment(t *testing.T) {
	read := files{"a.yaml": "job_name: a", "b.yaml": "job_name: b"}.read
	for _, c := range []struct {
		name string
		in   Input
		want string
	}{
		{"argument", Input{Args: []string{"a.yaml"}}, "a"},
		{"flag", Input{Args: []string{"--config", "a.yaml"}}, "a"},
		{"flag with equals sign", Input{Args: []string{"--config=a.yaml"}}, "a"},
		{"environment", Input{Environ: []string{"PGBERTH_CONFIG=b.yaml"}}, "b"},
		{"argument before environment", Input{Args: []string{"a.yaml"}, Environ: []string{"PGBERTH_CONFIG=b.yaml"}}, "a"},
		{"none", Input{}, "pgberth"},
	} {
		c.in.Read = read
		got, err := Load(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got.Process.JobName != c.want {
			t.Errorf("%s: job_name is %s, want %s", c.name, got.Process.JobName, c.want)
		}
	}
}

// S76
func TestAllProblemsAreToldAtOnceInOrder(t *testing.T) {
	_, err := Load(Input{
		Args:    []string{"--listen_prot=1", "-x", "c.yaml", "--verbose=loud", "d.yaml", "--pool_mode"},
		Environ: []string{"PGBERTH_POOL_MOD=session", "PGBERTH_LISTEN_PORT=x", "PGBERTH_pool_mode=session", "PGBERTH_=1"},
		Read:    files{"c.yaml": "max_client_conn: 0\nlisten_port: y\n"}.read,
	})
	want := []string{
		`c.yaml:1: max_client_conn is "0"; allowed: whole numbers from 1 to 2147483647`,
		`c.yaml:2: listen_port is "y"; allowed: whole numbers from 0 to 65535`,
		`PGBERTH_POOL_MOD: unknown variable; did you mean PGBERTH_POOL_MODE?`,
		`PGBERTH_pool_mode: unknown variable; did you mean PGBERTH_POOL_MODE?`,
		`PGBERTH_: unknown variable`,
		`PGBERTH_LISTEN_PORT: listen_port is "x"; allowed: whole numbers from 0 to 65535`,
		`--listen_prot: unknown flag; did you mean --listen_port?`,
		`-x: unknown flag`,
		`--pool_mode: the flag has no value; allowed: --key=value`,
		`--verbose: verbose is "loud"; allowed: whole numbers from 0 to 2147483647`,
		`more than one configuration file: c.yaml, d.yaml; allowed: one`,
	}
	if err == nil || err.Error() != strings.Join(want, "\n") {
		t.Errorf("got:\n%v\nwant:\n%s", err, strings.Join(want, "\n"))
	}
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != len(want) {
		t.Errorf("%d problems, want %d", len(problems), len(want))
	}
}

func TestAMissingFileIsOneProblemAlone(t *testing.T) {
	for _, file := range []string{"no.yaml", "no.ini"} {
		_, err := Load(Input{Args: []string{file}})
		want := fmt.Sprintf("configuration file %q: no such file or directory", file)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestAnEndlessFileIsRefused(t *testing.T) {
	_, err := Load(Input{Args: []string{"/dev/zero"}})
	if err == nil || !strings.Contains(err.Error(), "larger than 8 MiB") {
		t.Errorf("got %v", err)
	}
}

// A service named pgberth makes Kubernetes set such variables in every pod of its namespace.
func TestServiceLinksOfKubernetesAreNoSettings(t *testing.T) {
	c, err := Load(Input{Environ: []string{
		"PGBERTH_SERVICE_HOST=10.0.0.1", "PGBERTH_SERVICE_PORT=6432", "PGBERTH_SERVICE_PORT_PG=6432",
		"PGBERTH_PORT=tcp://10.0.0.1:6432", "PGBERTH_PORT_6432_TCP=tcp://10.0.0.1:6432", "PGBERTH_PORT_6432_TCP_PROTO=tcp",
		"PGBERTH_INJECTOR_SERVICE_HOST=10.0.0.2", "PGBERTH_INJECTOR_PORT_443_TCP_ADDR=10.0.0.2",
		"PGBERTH_LISTEN_PORT=7000",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.Port != 7000 {
		t.Errorf("listen_port is %d", c.Listen.Port)
	}
}

func TestABlankPathHasNoSocketAndNativeDefaultsStayLocal(t *testing.T) {
	c, err := Load(Input{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.SocketDir != "" || !slices.Equal(c.Listen.Addrs, []string{"127.0.0.1", "::1"}) || c.Auth.Type != AuthPassthrough {
		t.Errorf("got %+v, %+v", c.Listen, c.Auth)
	}
	if len(c.Notes()) != 1 {
		t.Errorf("notes: %q", c.Notes())
	}
}

func TestCheckQueryTellsEmptyFromNone(t *testing.T) {
	for text, want := range map[string]string{"": "off", "<empty>": `""`, "select 1": `"select 1"`} {
		got := "off"
		if query, on := (Server{CheckQuery: text}).Check(); on {
			got = fmt.Sprintf("%q", query)
		}
		if got != want {
			t.Errorf("Check of %q is %s, want %s", text, got, want)
		}
	}
}

func TestVerboseMeansDebug(t *testing.T) {
	for _, c := range []struct {
		log  Log
		want slog.Level
	}{
		{Log{Level: LevelInfo}, slog.LevelInfo}, {Log{Level: LevelError, Verbose: 1}, slog.LevelDebug},
		{Log{Level: LevelDebug}, slog.LevelDebug}, {Log{Level: LevelWarn}, slog.LevelWarn}, {Log{Level: LevelError}, slog.LevelError},
	} {
		if got := c.log.Slog(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.log, got, c.want)
		}
	}
}

// Wherever a secret stands, in good files and in broken ones, nothing that comes out of here shows it.
func TestSecretsNeverLeak(t *testing.T) {
	const secret = "hunter2"
	inputs := map[string]string{
		"good.yaml":    "auth_ldap_options: hunter2\ndatabases: [{name: a, host: h, user: u, password: hunter2}]",
		"anchor.yaml":  "databases: [{name: a, host: h, user: u, password: *hunter2}]",
		"tag.yaml":     "databases: [{name: a, host: h, user: u, password: !hunter2!x y}]",
		"at.yaml":      "databases:\n- password: @hunter2",
		"percent.yaml": "databases:\n- password: %hunter2",
		"quote.yaml":   "databases:\n- password: \"hunter2",
		"escape.yaml":  "databases:\n- password: \"\\hunter2\"",
		"tick.yaml":    "databases:\n- password: `hunter2`",
		"map.yaml":     "databases:\n- password: {hunter2: hunter2}",
		"colon.yaml":   "databases:\n- password: hunter2: hunter2",
		"list.yaml":    "databases:\n- password: [hunter2]",
		"nul.yaml":     "databases:\n- password: \"hunter2\\0\"",
		"orphan.yaml":  "databases: [{name: a, host: h, password: hunter2}]",
		"typo.yaml":    "databases: [{name: a, host: h, pasword: hunter2}]",
		"good.ini":     "[pgbouncer]\nauth_type=trust\nauth_ldap_options=hunter2\n[databases]\na = host=h user=u password='hunter2'",
		"open.ini":     "[pgbouncer]\n[databases]\na = host=h user=u password='hunter2",
		"after.ini":    "[pgbouncer]\n[databases]\na = password='x'hunter2",
		"blank.ini":    "[pgbouncer]\n[databases]\na = password=my hunter2",
		"equals.ini":   "[pgbouncer]\n[databases]\na = password=my hunter2=x",
		"empty.ini":    "[pgbouncer]\n[databases]\na = password=my hunter2=''",
		"typo.ini":     "[pgbouncer]\n[databases]\na = pasword=hunter2",
		"key.ini":      "[pgbouncer]\nauth_ldap_options hunter2",
		"bracket.ini":  "[pgbouncer]\n[hunter2",
		"file.ini":     "[pgbouncer]\nauth_type=trust\nauth_file=list",
		"broken.ini":   "[pgbouncer]\nauth_file=broken",
		"list":         `"u" "hunter2"`,
		"broken":       `"u" hunter2`,
	}
	for name, text := range inputs {
		if !strings.Contains(name, ".") {
			continue
		}
		c, err := Load(Input{Args: []string{name}, Read: files(inputs).read})
		var out strings.Builder
		fmt.Fprintln(&out, err)
		if c != nil {
			fmt.Fprintln(&out, rendered(c), c.Notes(), c.Inert())
			route, _ := c.Route("a", "u")
			for _, v := range []any{c, *c, route, &route, c.Userlist, struct{ c Config }{*c}} {
				fmt.Fprintf(&out, "%v %+v %#v %s %q %x\n", v, v, v, v, v, v)
			}
			data, err := json.Marshal(c)
			fmt.Fprintln(&out, string(data), err)
			log := slog.New(slog.NewTextHandler(&out, nil))
			log.Info("x", "config", c, "route", route, "secret", route.Password)
			if strings.HasPrefix(name, "good") && route.Password.Reveal() != secret {
				t.Errorf("%s: the password got lost: %q", name, route.Password.Reveal())
			}
		} else if strings.HasPrefix(name, "good") {
			t.Errorf("%s: %v", name, err)
		}
		for _, form := range []string{secret, fmt.Sprintf("%x", secret)} {
			if i := strings.Index(out.String(), form); i >= 0 {
				t.Errorf("%s (%q) leaks %s: …%s", name, text, form, out.String()[max(0, i-100):i+len(form)])
			}
		}
	}
}
