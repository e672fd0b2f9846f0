package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// lab is where everything runs: a PostgreSQL with pgbench's tables, the binaries and a folder.
type lab struct {
	dir                string
	sidecar, pgbouncer string
	postgres           *pgtest.Server
	prepares           bool       // PgBouncer follows prepared statements
	verifier           string     // of the guest's password
	keys               scram.Keys // of the same, so that the client's part of a login costs little
}

// scale 10 makes a million accounts, 150 MB: all in memory, as the relay is the question and not the disk.
const scale = 10

func openLab(ctx context.Context, s settings, dir string) (*lab, error) {
	if err := raiseFileLimit(); err != nil {
		return nil, err
	}
	l := &lab{dir: dir, sidecar: s.sidecar, pgbouncer: s.pgbouncer}
	var err error
	if l.verifier, l.keys, err = credentials(); err != nil {
		return nil, err
	}
	cert, key, err := certificate()
	if err != nil {
		return nil, err
	}
	if l.postgres, err = pgtest.Launch(ctx, pgtest.Options{
		MaxConnections: 500,
		Settings:       map[string]string{"shared_buffers": "256MB", "max_wal_size": "4GB", "ssl": "on"},
		Files:          map[string]string{"server.crt": cert, "server.key": key},
	}); err != nil {
		return nil, err
	}
	if err := l.furnish(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// furnish makes the roles, pgbench's tables, and PostgreSQL ask the guest for a password.
func (l *lab) furnish(ctx context.Context) error {
	file, err := l.postgres.Query(ctx, "SHOW hba_file")
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"CREATE ROLE " + owner + " LOGIN",
		fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", guest, l.verifier),
		fmt.Sprintf("CREATE DATABASE %s OWNER %s", database, owner),
		fmt.Sprintf("COPY (VALUES ('local all all trust'), ('host all %s all scram-sha-256'), ('host all all all trust')) TO '%s'", guest, file[0][0]),
		"SELECT pg_reload_conf()",
	} {
		if err := l.postgres.Exec(ctx, sql); err != nil {
			return err
		}
	}
	_, err = l.pgbench(ctx, l.postgres.Port, "disable", "-i", "-q", "-s", fmt.Sprint(scale))
	return err
}

func (l *lab) close() { l.postgres.Close() }

// pgbench runs it against a port of this machine, over TCP and with libpq's sslmode, and returns what it printed.
func (l *lab) pgbench(ctx context.Context, port int, sslmode string, args ...string) (string, error) {
	args = append([]string{"-h", "127.0.0.1", "-p", fmt.Sprint(port), "-U", owner}, args...)
	cmd := exec.CommandContext(ctx, l.postgres.Bin("pgbench"), append(args, database)...)
	cmd.Env = append(os.Environ(), "PGSSLMODE="+sslmode, "PGGSSENCMODE=disable", "PGCONNECT_TIMEOUT=20")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pgbench %s: %w\n%s", strings.Join(args, " "), err, tail(out))
	}
	return string(out), nil
}

func tail(out []byte) string {
	const keep = 1500
	if len(out) > keep {
		out = out[len(out)-keep:]
	}
	return strings.TrimSpace(string(out))
}

// raiseFileLimit makes room for thousands of connections, in the programs started from here too.
func raiseFileLimit() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	if limit.Max < 2*maxClients {
		return fmt.Errorf("the limit of open files is %d, the benchmark needs %d (ulimit -Hn)", limit.Max, 2*maxClients)
	}
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}
