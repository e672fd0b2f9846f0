package drivers

import (
	"database/sql"
	"fmt"
	"net/http"
	"regexp"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgberth/pgberth/e2e/daemon"
	"github.com/pgberth/pgberth/pkg/pgtest"
)

// S21
func TestLibPqPrepares(t *testing.T) {
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			libPqPrepares(t, start(t, pgtest.Shared(t), "pool_mode: "+mode, "default_pool_size: 5"))
		})
	}
}

// libPqPrepares uses statements of its own, and the unnamed one that lib/pq prepares in one batch and uses in another.
func libPqPrepares(t *testing.T, s *sidecar) {
	db, err := sql.Open("postgres", s.url("postgres", "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(5)
	statement, err := db.PrepareContext(t.Context(), "select $1::int * 2")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		var prepared, direct int
		if err := statement.QueryRowContext(t.Context(), i).Scan(&prepared); err != nil {
			t.Fatal(err)
		}
		if err := db.QueryRowContext(t.Context(), "select $1::int * 2", i).Scan(&direct); err != nil {
			t.Fatal(err)
		}
		if prepared != 2*i || direct != 2*i {
			t.Errorf("got %d and %d, want %d", prepared, direct, 2*i)
		}
	}
	if err := statement.Close(); err != nil {
		t.Error(err)
	}
}

func TestPortZeroTakesAFreePortAndTellsIt(t *testing.T) {
	server := pgtest.Shared(t)
	file := write(t, "free.yaml", fmt.Sprintf("listen_addr: 127.0.0.1\nlisten_port: 0\nhttp_addr: 127.0.0.1:0\nauth_type: trust\n"+
		"databases:\n  - {name: app, host: 127.0.0.1, port: %d, dbname: postgres, user: postgres}\n", server.Port))
	p, err := daemon.Start(t.Context(), daemon.Options{Path: binary, Args: []string{file}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(syscall.SIGKILL, patience)
	told := func(message string) (addr string) {
		line := regexp.MustCompile(message + `.* addr=(127\.0\.0\.1:[1-9]\d*)`)
		eventually(t, message, func() bool {
			found := line.FindStringSubmatch(p.Log())
			if found != nil {
				addr = found[1]
			}
			return found != nil
		})
		return addr
	}
	s := &sidecar{t: t, http: told("serving health and metrics")}
	if code, body := s.get("/readyz"); code != http.StatusOK {
		t.Errorf("/readyz says %d: %s", code, body)
	}
	c, err := pgx.Connect(t.Context(), "postgres://postgres@"+told("listening")+"/app?sslmode=disable&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
