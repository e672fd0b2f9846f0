package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pgberth/pgberth/e2e/daemon"
)

// What is compared. The second PgBouncer is the same binary with the same configuration: what it differs from the first
// by is noise.
const (
	directTarget    = "postgres"
	pgbouncerTarget = "pgbouncer"
	againTarget     = "pgbouncer-again"
	sidecarTarget   = "sidecar"
)

var targetNames = []string{directTarget, pgbouncerTarget, sidecarTarget, againTarget}

const (
	poolSize   = 20
	maxClients = 6000

	database = "bench"
	owner    = "bench" // of the database; PostgreSQL trusts it
	guest    = "storm" // logs in with a password, at the pooler or at PostgreSQL
)

// Both poolers get the same settings; what is not named here is at its default, which the sidecar shares with PgBouncer.
const pgbouncerConfig = `[databases]
%[1]s = host=127.0.0.1 port=%[2]d dbname=%[1]s user=%[3]s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[4]d
unix_socket_dir =
auth_type = %[5]s
auth_file = %[6]s
pool_mode = transaction
default_pool_size = %[7]d
max_client_conn = %[8]d
log_connections = 0
log_disconnections = 0
server_tls_sslmode = %[9]s
`

const sidecarConfig = `listen_addr: 127.0.0.1
listen_port: %[4]d
http_addr: 127.0.0.1:0
auth_type: %[5]s
auth_file: %[6]s
pool_mode: transaction
default_pool_size: %[7]d
max_client_conn: %[8]d
log_connections: false
log_disconnections: false
server_tls_sslmode: %[9]s
databases:
  - name: %[1]s
    host: 127.0.0.1
    port: %[2]d
    dbname: %[1]s
    user: %[3]s
`

// instance is a target that serves.
type instance struct {
	port    int
	process *daemon.Process // nil for PostgreSQL: it is many processes, and their cost is not the question
}

func (i instance) stop() {
	if i.process != nil {
		i.process.Stop(syscall.SIGKILL, time.Second)
	}
}

// start runs a pooler that asks its clients for authType and its server for TLS by sslmode, or says where PostgreSQL is.
func (l *lab) start(ctx context.Context, name, authType, sslmode string) (instance, error) {
	if name == directTarget {
		return instance{port: l.postgres.Port}, nil
	}
	port, err := daemon.FreePort()
	if err != nil {
		return instance{}, err
	}
	dir, err := os.MkdirTemp(l.dir, name+"-")
	if err != nil {
		return instance{}, err
	}
	binary, template, file, user := l.sidecar, sidecarConfig, "sidecar.yaml", ""
	if name != sidecarTarget {
		binary, template, file, user = l.pgbouncer, pgbouncerConfig, "pgbouncer.ini", daemon.Unprivileged("postgres", "nobody")
	}
	if name != sidecarTarget && l.prepares {
		template += "max_prepared_statements = 200\n"
	}
	users := filepath.Join(dir, "userlist.txt")
	config := filepath.Join(dir, file)
	text := fmt.Sprintf(template, database, l.postgres.Port, owner, port, authType, users, poolSize, maxClients, sslmode)
	for path, content := range map[string]string{
		users:  fmt.Sprintf("%q \"\"\n%q %q\n", owner, guest, l.verifier),
		config: text,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return instance{}, err
		}
	}
	for _, path := range []string{dir, users, config} {
		if err := daemon.Chown(path, user); err != nil {
			return instance{}, err
		}
	}
	process, err := daemon.Start(ctx, daemon.Options{
		Path: binary, Args: []string{config}, Dir: dir, Unprivileged: user,
		Listens: fmt.Sprintf("127.0.0.1:%d", port),
	})
	if err != nil {
		return instance{}, fmt.Errorf("%s: %w", name, err)
	}
	return instance{port, process}, nil
}

// fleet is one instance of each target.
type fleet map[string]instance

func (l *lab) startAll(ctx context.Context, names []string, authType, sslmode string) (fleet, error) {
	f := fleet{}
	for _, name := range names {
		i, err := l.start(ctx, name, authType, sslmode)
		if err != nil {
			f.stop()
			return nil, err
		}
		f[name] = i
	}
	return f, nil
}

func (f fleet) stop() {
	for _, i := range f {
		i.stop()
	}
}

// prepares says whether a PgBouncer follows prepared statements, as it does from 1.21 on. Source: its changelog.
func prepares(version string) bool {
	var major, minor int
	n, err := fmt.Sscanf(version, "PgBouncer %d.%d", &major, &minor)
	return err == nil && n == 2 && (major > 1 || minor >= 21)
}

// version is the first line a binary says about itself.
func version(output string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(output), "\n")
	return first
}
