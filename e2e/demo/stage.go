package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/pgberth/pgberth/e2e/daemon"
	"github.com/pgberth/pgberth/pkg/pgtest"
)

// Roles of their own tell in pg_stat_activity whose backends are whose.
const (
	appRole    = "app"
	poolerRole = "pooler"
	database   = "shop"
)

// scale 10 of pgbench's tables is a million accounts.
const (
	scale    = 10
	accounts = 100_000 * scale
)

const sidecarConfig = `listen_addr: 127.0.0.1
listen_port: %d
http_addr: 127.0.0.1:0
auth_type: trust
auth_file: %s
pool_mode: transaction
default_pool_size: %d
max_client_conn: 1000
databases:
  - name: %s
    host: 127.0.0.1
    port: %d
    user: %s
`

// stage is the database and a folder for the sidecar.
type stage struct {
	dir         string
	postgres    *pgtest.Server
	sidecarAddr string
}

func setStage(ctx context.Context) (*stage, error) {
	began := time.Now()
	fmt.Printf("starting PostgreSQL with max_connections=%d in a temporary folder, loading %d accounts ... ", maxConnections, accounts)
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir}
	if err := s.furnish(ctx); err != nil {
		s.close()
		return nil, err
	}
	fmt.Printf("done in %.1f s\n\n", time.Since(began).Seconds())
	return s, nil
}

func (s *stage) furnish(ctx context.Context) (err error) {
	s.postgres, err = pgtest.Launch(ctx, pgtest.Options{MaxConnections: maxConnections, Settings: map[string]string{
		// The sampler connects first and stays, so it needs no reserved place, and every refusal reads the same.
		"superuser_reserved_connections": "0",
		"shared_buffers":                 "256MB",
		"max_wal_size":                   "4GB",
	}})
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"CREATE ROLE " + appRole + " LOGIN",
		"CREATE ROLE " + poolerRole + " LOGIN IN ROLE " + appRole,
		"CREATE DATABASE " + database + " OWNER " + appRole,
	} {
		if err := s.postgres.Exec(ctx, sql); err != nil {
			return err
		}
	}
	load := exec.CommandContext(ctx, s.postgres.Bin("pgbench"), "-i", "-q", "-s", strconv.Itoa(scale), "-h", s.postgres.Host,
		"-p", strconv.Itoa(s.postgres.Port), "-U", appRole, database)
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbench -i: %w\n%s", err, out)
	}
	return nil
}

func (s *stage) close() {
	if s.postgres != nil {
		s.postgres.Close()
	}
	os.RemoveAll(s.dir)
}

func (s *stage) startSidecar(ctx context.Context, o settings) (*daemon.Process, error) {
	port, err := daemon.FreePort()
	if err != nil {
		return nil, err
	}
	binary, err := filepath.Abs(o.sidecar)
	if err != nil {
		return nil, err
	}
	users, file := filepath.Join(s.dir, "userlist.txt"), filepath.Join(s.dir, "sidecar.yaml")
	config := fmt.Sprintf(sidecarConfig, port, users, o.budget, database, s.postgres.Port, poolerRole)
	for path, content := range map[string]string{users: fmt.Sprintf("%q \"\"\n", appRole), file: config} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	s.sidecarAddr = fmt.Sprintf("127.0.0.1:%d", port)
	return daemon.Start(ctx, daemon.Options{Path: binary, Args: []string{file}, Dir: s.dir, Listens: s.sidecarAddr})
}

// endPolitely asks the sidecar to leave, which with no client left it must do at once.
func endPolitely(sidecar *daemon.Process) error {
	const grace = 5 * time.Second
	began := time.Now()
	sidecar.Stop(syscall.SIGTERM, grace)
	if time.Since(began) >= grace {
		return fmt.Errorf("the sidecar did not end within %v of SIGTERM with no client left; its log ends with:\n%s", grace, sidecar.Log())
	}
	return nil
}

// lostWrites compares the writes that applications saw committed with the rows there are. Each also changed an account's
// balance in the same transaction, so the sums must agree as well.
func (s *stage) lostWrites(ctx context.Context, committed int) (int, error) {
	rows, err := s.postgres.QueryIn(ctx, database, `SELECT (SELECT count(*) FROM pgbench_history),
		(SELECT coalesce(sum(delta), 0) FROM pgbench_history) - (SELECT sum(abalance) FROM pgbench_accounts)`)
	if err != nil {
		return 0, err
	}
	stored, err := strconv.Atoi(rows[0][0])
	if err != nil {
		return 0, err
	}
	if rows[0][1] != "0" {
		return 0, fmt.Errorf("balances and history differ by %s: a transaction was torn apart", rows[0][1])
	}
	fmt.Printf("committed writes: the applications were told of %d, the tables have %d\n\n", committed, stored)
	return committed - stored, nil
}
