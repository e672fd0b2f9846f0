package pgtest

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestAServerAnswersOverTCPWithTheAuthenticationAskedFor(t *testing.T) {
	for _, auth := range []Auth{Trust, Cleartext, MD5, SCRAM} {
		s := Start(t, Options{Auth: auth, MaxConnections: 7, Settings: map[string]string{"work_mem": "3MB"}})
		c, err := pgconn.Connect(t.Context(), s.URL(User, Password, Database))
		if err != nil {
			t.Errorf("%s: %v\n%s", auth, err, s.Log())
			continue
		}
		c.Close(t.Context())
		c, err = pgconn.Connect(t.Context(), s.URL(User, "wrong", Database))
		if (err == nil) != (auth == Trust) {
			t.Errorf("%s: a wrong password gives %v", auth, err)
		}
		if c != nil {
			c.Close(t.Context())
		}
		rows, err := s.Query(t.Context(), "select current_setting('max_connections'), current_setting('work_mem'), (select left(rolpassword, 3) from pg_authid where rolname = current_user)")
		secret := map[bool]string{true: "md5", false: "SCR"}[auth == MD5]
		if err != nil || !slices.Equal(rows[0], []string{"7", "3MB", secret}) {
			t.Errorf("%s: got %v, %v", auth, rows, err)
		}
	}
}

func TestAServerStopsAndStartsAgainWithItsData(t *testing.T) {
	s := Start(t, Options{})
	if err := s.Exec(t.Context(), "create table kept as select 42 as answer"); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("a stopped server accepts connections")
	}
	if pid := s.PID(); pid != 0 {
		t.Errorf("a stopped server has pid %d", pid)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.Query(t.Context(), "select answer from kept"); err != nil || rows[0][0] != "42" {
		t.Errorf("got %v, %v", rows, err)
	}
}

func TestKill9EndsEveryBackendAndTheServerCanStartAgain(t *testing.T) {
	s := Start(t, Options{})
	c, err := pgconn.Connect(t.Context(), s.URL(User, "", Database)+"&application_name=victim")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	backends, err := s.Backends(t.Context())
	if err != nil || len(backends) != 1 || backends[0].Application != "victim" || uint32(backends[0].PID) != c.PID() {
		t.Fatalf("backends are %+v, %v", backends, err)
	}
	postmaster := s.PID()
	s.Kill9()
	for _, pid := range []int{postmaster, backends[0].PID} {
		if alive(pid) {
			t.Errorf("process %d lives", pid)
		}
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := s.PID(); now == postmaster || now == 0 {
		t.Errorf("the postmaster's pid is %d, before it was %d", now, postmaster)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	s, err := Launch(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	pid := s.PID()
	s.Close()
	if _, err := os.Stat(s.SocketDir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if alive(pid) {
		t.Error("the postmaster lives")
	}
}

func TestAServerIsCleanedUpWhenItsProcessDies(t *testing.T) {
	s, err := Launch(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	pid := s.PID()
	held.close(s.cleaner) // what the end of this process does
	if !await(20*time.Second, func() bool {
		_, err := os.Stat(s.SocketDir)
		return os.IsNotExist(err) && !alive(pid)
	}) {
		t.Errorf("process %d or %s is still there", pid, s.SocketDir)
	}
	s.Close()
}

func TestSharedIsOneServer(t *testing.T) {
	if a, b := Shared(t), Shared(t); a != b || a.PID() == 0 {
		t.Errorf("got %p and %p", a, b)
	}
}

func TestAServerThatCannotStartSaysWhy(t *testing.T) {
	_, err := Launch(t.Context(), Options{Settings: map[string]string{"shared_buffers": "plenty"}})
	if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Errorf("got %v", err)
	}
}

func TestWithoutPostgreSQLTheErrorSaysHowToInstallIt(t *testing.T) {
	// A directory of its own wins; one with a postgres but without initdb does not count.
	dir := t.TempDir()
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		found, err := Binaries()
		if complete := name == "initdb"; (err == nil && found == dir) != complete {
			t.Errorf("after creating %s: found %q, %v", name, found, err)
		}
	}
	if !strings.Contains(errNoPostgres.Error(), "apt-get install postgresql") {
		t.Errorf("it says: %v", errNoPostgres)
	}
}

func TestQueryEndsWithItsContext(t *testing.T) {
	s := Shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- s.Exec(ctx, "select pg_sleep(600)") }()
	if !await(20*time.Second, func() bool {
		backends, err := s.Backends(t.Context())
		return err == nil && slices.ContainsFunc(backends, func(b Backend) bool { return b.Wait == "PgSleep" })
	}) {
		t.Fatal("the query never ran")
	}
	cancel()
	if err := <-failed; err == nil {
		t.Error("it succeeded")
	}
}

func TestChildrenFindsOurOwn(t *testing.T) {
	s := Shared(t)
	if !slices.Contains(children(os.Getpid()), s.PID()) {
		t.Errorf("children of %d are %v, without %d", os.Getpid(), children(os.Getpid()), s.PID())
	}
}
