package drivers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func (s *sidecar) connect(ctx context.Context) *pgx.Conn {
	s.t.Helper()
	c, err := pgx.Connect(ctx, s.url("postgres", "x")+"&default_query_exec_mode=simple_protocol")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestAPgbouncerIniIsADropIn(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{Auth: pgtest.SCRAM})
	if err := server.Exec(t.Context(), "create role app login password 'it''s'"); err != nil {
		t.Fatal(err)
	}
	s := &sidecar{t: t, port: freePort(t)}
	users := write(t, "userlist.txt", `"app" "it's"`+"\n")
	ini := write(t, "pgbouncer.ini", fmt.Sprintf(`; as PgBouncer has it
[databases]
app = host=127.0.0.1 port=%d dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = extra_float_digits
`, server.Port, s.port, users))
	s.launch(ini)
	out := runTool(t, append(s.env(), "PGUSER=app", "PGPASSWORD=it's"), "", server.Bin("psql"), "-XAtc", "select current_user")
	if strings.TrimSpace(out) != "app" {
		t.Fatalf("logged in as %q, want app", out)
	}
	if !strings.Contains(s.Log(), "9127") && !strings.Contains(s.Log(), "health and metrics") {
		t.Errorf("the log says nothing about its HTTP port:\n%s", s.Log())
	}
}

// S66
func TestTermFinishesTransactionsAndThenEnds(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "drain_timeout: 20")
	ctx := t.Context()
	c := s.connect(ctx)
	tx, err := c.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "create table drained (n int)"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sidecar drains", func() bool { return strings.Contains(s.Log(), "draining") })
	if code, _ := s.get("/livez"); code != 200 {
		t.Errorf("/livez says %d while draining, want 200", code)
	}
	// It keeps serving, newcomers too.
	if err := s.connect(ctx).Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := tx.Exec(ctx, "insert into drained values (1)"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	_ = c.Close(ctx)
	<-s.Done()
	rows, err := server.Query(ctx, "select n from drained")
	if err != nil || len(rows) != 1 {
		t.Fatalf("the transaction left %v, %v", rows, err)
	}
}

// S65
func TestASecondTermEndsAtOnce(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "drain_timeout: 3600")
	ctx := t.Context()
	c := s.connect(ctx)
	if _, err := c.Exec(ctx, "begin"); err != nil {
		t.Fatal(err)
	}
	for _, seen := range []string{"draining", "stopped"} {
		if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, seen, func() bool { return strings.Contains(s.Log(), seen) })
	}
	<-s.Done()
	if _, err := c.Exec(ctx, "select 1"); err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("the client was told %v, want SQLSTATE 57P01", err)
	}
}

// S76
func TestHupReloadsWhatCanBeAndNamesWhatCannot(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server, "default_pool_size: 2")
	old, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	hup := func(content, seen string) {
		t.Helper()
		if err := os.WriteFile(s.file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(s.PID, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, seen, func() bool { return strings.Contains(s.Log(), seen) })
	}
	fresh := strings.Replace(string(old), "default_pool_size: 2", "default_pool_size: 7", 1)
	fresh = strings.Replace(fresh, fmt.Sprintf("listen_port: %d", s.port), "listen_port: 1234", 1)
	if err := s.connect(t.Context()).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	hup(fresh, "need a restart")
	if !strings.Contains(s.Log(), "listen_port") {
		t.Errorf("the log does not name listen_port:\n%s", s.Log())
	}
	eventually(t, "the pool's new size", func() bool {
		_, body := s.get("/metrics")
		return strings.Contains(body, `pgberth_pool_size{database="app",user="postgres"} 7`)
	})
	hup("nonsense: 1\n", "reload failed")
	if err := s.connect(t.Context()).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestItStartsAndReportsReadyWithNoDatabase(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	server.Stop()
	s := start(t, server)
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		if code, body := s.get(path); code != 200 {
			t.Errorf("%s says %d: %s", path, code, body)
		}
	}
	if out, err := exec.Command(binary, "healthz", s.file).CombinedOutput(); err != nil {
		t.Errorf("healthz: %v\n%s", err, out)
	}
	// Clients wait, and are served when it comes.
	served := make(chan error, 1)
	go func() {
		c, err := pgx.Connect(context.Background(), s.url("postgres", "x")+"&default_query_exec_mode=simple_protocol")
		if err == nil {
			err = c.Ping(context.Background())
			_ = c.Close(context.Background())
		}
		served <- err
	}()
	eventually(t, "an attempt to connect", func() bool { return strings.Contains(s.Log(), "cannot connect to server") })
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestHealthzFailsWhenNobodyServes(t *testing.T) {
	err := exec.Command(binary, "healthz", fmt.Sprintf("--http_addr=127.0.0.1:%d", freePort(t))).Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("healthz ended with %v, want exit status 1", err)
	}
}

func TestABrokenConfigurationEndsBeforeListeningWithEverySentence(t *testing.T) {
	port := freePort(t)
	file := write(t, "broken.yaml", fmt.Sprintf("listen_port: %d\npool_mood: session\ndefault_pool_size: many\ndatabases:\n  - {name: a, host: h, port: 99999}\n", port))
	cmd := exec.Command(binary, file)
	var errs strings.Builder
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Fatalf("ended with %v, want exit status 2\n%s", err, errs.String())
	}
	for _, want := range []string{"pool_mood", "pool_mode", "default_pool_size", "99999"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("nothing is said of %s:\n%s", want, errs.String())
		}
	}
	if n := strings.Count(strings.TrimSpace(errs.String()), "\n"); n != 2 {
		t.Errorf("%d lines, want one for each of the 3 problems:\n%s", n+1, errs.String())
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		_ = c.Close()
		t.Error("it listens")
	}
}

func TestCheckPrintsEffectiveSettingsAndTheirOrigin(t *testing.T) {
	file := write(t, "checked.yaml", "default_pool_size: 7\ndatabases:\n  - {name: Shop.EU, host: h, user: u, password: s3cret}\n")
	cmd := exec.Command(binary, "check", file, "--max_client_conn=50")
	cmd.Env = append(os.Environ(), "PGBERTH_RESERVE_POOL_SIZE=3")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for key, origin := range map[string]string{
		"default_pool_size": filepath.Base(file), "max_client_conn": "--max_client_conn", "reserve_pool_size": "PGBERTH_RESERVE_POOL_SIZE", "server_lifetime": "default",
	} {
		found := false
		for line := range strings.Lines(string(out)) {
			found = found || strings.HasPrefix(line, key+" ") && strings.Contains(line, origin)
		}
		if !found {
			t.Errorf("%s does not come from %s:\n%s", key, origin, out)
		}
	}
	if strings.Contains(string(out), "s3cret") || !strings.Contains(string(out), "Shop.EU") {
		t.Errorf("a secret is shown, or a name has lost its case:\n%s", out)
	}
}

func TestABusyDefaultHTTPPortIsNotFatalButAnAskedForOneIs(t *testing.T) {
	server := pgtest.Shared(t)
	// Perhaps taken already, by another sidecar on this machine: that serves as well.
	if busy, err := net.Listen("tcp", "127.0.0.1:9127"); err == nil {
		defer func() { _ = busy.Close() }()
	}
	s := &sidecar{t: t, port: freePort(t)}
	file := write(t, "default.yaml", fmt.Sprintf("listen_addr: 127.0.0.1\nlisten_port: %d\nauth_type: trust\ndatabases:\n  - {name: app, host: 127.0.0.1, port: %d, dbname: postgres, user: postgres}\n", s.port, server.Port))
	s.launch(file)
	if err := s.connect(t.Context()).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Log(), "http_addr is in use") {
		t.Errorf("the log does not tell:\n%s", s.Log())
	}
	out, err := exec.Command(binary, file, fmt.Sprintf("--listen_port=%d", freePort(t)), "--http_addr=127.0.0.1:9127").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "http_addr") {
		t.Fatalf("an explicit busy port ended with %v:\n%s", err, out)
	}
}
