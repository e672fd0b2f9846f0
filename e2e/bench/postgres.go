package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgberth/pgberth/e2e/daemon"
)

type postgres struct {
	bin     string
	port    int
	process *daemon.Process
}

func startPostgres(ctx context.Context, dir string) (*postgres, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		return nil, fmt.Errorf("no PostgreSQL")
	}
	p := &postgres{bin: found[len(found)-1]}
	user := daemon.Unprivileged("postgres")
	data := filepath.Join(dir, "postgres")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	if err := daemon.Chown(data, user); err != nil {
		return nil, err
	}
	init, err := daemon.Start(ctx, daemon.Options{Path: p.binary("initdb"), Args: []string{"-D", data + "/data", "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"}, Dir: data, Unprivileged: user})
	if err != nil {
		return nil, err
	}
	<-init.Done()
	hba := fmt.Sprintf("host all %s 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n", guest)
	if err := os.WriteFile(data+"/data/pg_hba.conf", []byte(hba), 0o644); err != nil {
		return nil, err
	}
	if p.port, err = daemon.FreePort(); err != nil {
		return nil, err
	}
	p.process, err = daemon.Start(ctx, daemon.Options{
		Path: p.binary("postgres"), Dir: data, Unprivileged: user, Listens: fmt.Sprintf("127.0.0.1:%d", p.port),
		Args: []string{"-D", data + "/data", "-c", "listen_addresses=127.0.0.1", "-c", fmt.Sprintf("port=%d", p.port), "-c", "unix_socket_directories=" + data,
			"-c", "max_connections=500", "-c", "shared_buffers=256MB", "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "max_wal_size=4GB", "-c", "autovacuum=off"},
	})
	if err != nil {
		return nil, err
	}
	for {
		conn, err := pgx.Connect(ctx, p.url())
		if err == nil {
			conn.Close(ctx)
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *postgres) url() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", p.port)
}
func (p *postgres) binary(name string) string { return filepath.Join(p.bin, name) }
func (p *postgres) stop()                     { p.process.Stop(syscall.SIGINT, 20*time.Second) }
func (p *postgres) version() string {
	out, _ := exec.Command(p.binary("postgres"), "--version").Output()
	return version(string(out))
}

func (p *postgres) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, p.url())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}
