package drivers

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestPsqlLogsInAsAuthQueryOfAPgbouncerIniSays(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{Auth: pgtest.SCRAM})
	if err := server.Exec(t.Context(), "create role alice login password 'open sesame'; create role late login password 'open sesame' valid until '2001-01-01'"); err != nil {
		t.Fatal(err)
	}
	users := write(t, "userlist.txt", fmt.Sprintf("%q %q\n", pgtest.User, pgtest.Password))
	s := &sidecar{t: t, port: freePort(t)}
	s.launch(write(t, "pgbouncer.ini", fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
http_addr =
pool_mode = transaction
auth_file = %s
auth_user = %s
auth_dbname = postgres
`, server.Port, s.port, users, pgtest.User)))
	psql := func(user, password string) string {
		cmd := exec.CommandContext(t.Context(), server.Bin("psql"), "-XAtc", "select current_user")
		cmd.Env = append(s.env(), "PGUSER="+user, "PGPASSWORD="+password, "PGDATABASE=postgres")
		out, _ := cmd.CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	if got := psql("alice", "open sesame"); got != "alice" {
		t.Errorf("the right password: %s", got)
	}
	for user, password := range map[string]string{"alice": "open barley", "late": "open sesame", "nobody": "open sesame"} {
		if got := psql(user, password); !strings.HasSuffix(got, fmt.Sprintf("FATAL:  password authentication failed for user %q", user)) {
			t.Errorf("%s with %q: %s", user, password, got)
		}
	}
	if err := server.Exec(context.Background(), "alter role alice password 'open barley'"); err != nil {
		t.Fatal(err)
	}
	if got := psql("alice", "open barley"); got != "alice" {
		t.Errorf("a password that was set anew: %s", got)
	}
	if got := psql(pgtest.User, pgtest.Password); got != pgtest.User {
		t.Errorf("a user of the list, by md5: %s", got)
	}
	for _, secret := range []string{"sesame", "barley", pgtest.Password, "SCRAM-SHA-256$"} {
		if strings.Contains(s.Log(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}
