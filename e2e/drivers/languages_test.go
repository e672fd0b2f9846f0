package drivers

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// language is how a driver of another language is run: a program, and a script with scenarios that says "passed".
type language struct {
	program string
	script  string
}

func (l language) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, l.program, append([]string{filepath.Base(l.script)}, args...)...)
}

// says runs the script in its own folder and returns what it printed.
func (l language) says(env []string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	defer stop()
	cmd := l.command(ctx, args...)
	cmd.Dir, cmd.Env = filepath.Dir(l.script), env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// psycopg is Debian's package, which only Debian's own Python knows.
func psycopg(t *testing.T) language {
	t.Helper()
	for _, program := range []string{"/usr/bin/python3", "python3"} {
		l := language{program, "python/scenarios.py"}
		if out, err := l.says(os.Environ(), "--version"); err == nil {
			t.Log(strings.TrimSpace(out))
			return l
		}
	}
	t.Fatal("psycopg 3 is missing: run make deps-drivers, or install Debian's package python3-psycopg")
	return language{}
}

// nodePostgres is what package-lock.json beside the script pins.
func nodePostgres(t *testing.T) language {
	t.Helper()
	l := language{"node", "node/scenarios.js"}
	out, err := l.says(os.Environ(), "--version")
	if err != nil {
		t.Fatal("node-postgres is missing: run make deps-drivers, or install the packages nodejs and npm and say npm ci in e2e/drivers/node")
	}
	t.Log(strings.TrimSpace(out))
	return l
}

// through runs scenarios before a server of their own through a transaction pool of so few connections.
func through(t *testing.T, l language, size string, scenarios []string) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Options{})
	s := start(t, server, "default_pool_size: "+size)
	for _, name := range scenarios {
		t.Run(name, func(t *testing.T) {
			if out, err := l.says(s.env(), name); err != nil || !strings.HasSuffix(out, "passed\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// S20, S25
func TestPsycopgWorksInTransactionMode(t *testing.T) {
	t.Parallel()
	l := psycopg(t)
	through(t, l, "3", []string{"prepared", "more_prepared_than_kept", "transactions", "sessions", "large_result", "copy", "cancel", "pipeline"})
}

// S20
func TestNodePostgresWorksInTransactionMode(t *testing.T) {
	t.Parallel()
	l := nodePostgres(t)
	through(t, l, "4", []string{"prepared", "transactions", "names", "sessions", "large_result", "cancel"})
}
