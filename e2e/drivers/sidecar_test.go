// Package drivers runs real drivers and tools against the real sidecar binary before a real PostgreSQL.
//
// It refuses to look inside: everything is seen as an application, an operator or a database sees it.
package drivers

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgberth/pgberth/e2e/daemon"
	"github.com/pgberth/pgberth/pkg/pgtest"
)

// patience bounds every wait for something that should come at once.
const patience = 30 * time.Second

var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pgberth-drivers-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "sidecar")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/sidecar")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the sidecar: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// sidecar is a running sidecar process.
type sidecar struct {
	*daemon.Process
	t    *testing.T
	port int
	http string
	file string
}

// start runs the sidecar with a YAML file before the server; more are lines of it at the top level.
func start(t *testing.T, server *pgtest.Server, more ...string) *sidecar {
	t.Helper()
	port, web := freePort(t), freePort(t)
	lines := append([]string{
		"listen_addr: 127.0.0.1",
		fmt.Sprintf("listen_port: %d", port),
		fmt.Sprintf("http_addr: 127.0.0.1:%d", web),
	}, more...)
	if !contains(more, "auth_type:") {
		lines = append(lines, "auth_type: trust")
	}
	if !contains(more, "databases:") {
		lines = append(lines, "databases:", fmt.Sprintf("  - {name: app, host: 127.0.0.1, port: %d, dbname: postgres, user: postgres}", server.Port))
	}
	s := &sidecar{t: t, port: port, http: fmt.Sprintf("127.0.0.1:%d", web)}
	s.file = write(t, "sidecar.yaml", strings.Join(lines, "\n")+"\n")
	s.launch(s.file)
	return s
}

func (s *sidecar) launch(args ...string) {
	s.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	p, err := daemon.Start(ctx, daemon.Options{Path: binary, Args: args, Dir: s.t.TempDir(), Listens: fmt.Sprintf("127.0.0.1:%d", s.port)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Process = p
	s.t.Cleanup(func() {
		p.Stop(syscall.SIGKILL, patience)
		if s.t.Failed() {
			s.t.Logf("sidecar log:\n%s", p.Log())
		}
	})
}

func (s *sidecar) url(user, password string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/app?sslmode=disable", user, password, s.port)
}

// env lets libpq's tools find the sidecar.
func (s *sidecar) env() []string {
	return append(os.Environ(), "PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", s.port), "PGUSER=postgres", "PGDATABASE=app", "PGSSLMODE=disable", "PGOPTIONS=")
}

// tool runs one of PostgreSQL's programs through the sidecar and returns what it printed.
func (s *sidecar) tool(server *pgtest.Server, stdin, program string, args ...string) string {
	s.t.Helper()
	return runTool(s.t, s.env(), stdin, server.Bin(program), args...)
}

func runTool(t *testing.T, env []string, stdin, program string, args ...string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	defer stop()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// get asks the sidecar's HTTP server.
func (s *sidecar) get(path string) (int, string) {
	s.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+path, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not seen within %v: %s", patience, what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := daemon.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func contains(lines []string, prefix string) bool {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			return true
		}
	}
	return false
}
