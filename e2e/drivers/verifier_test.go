package drivers

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

func TestAPrintedVerifierLetsItsUserIn(t *testing.T) {
	cmd := exec.Command(binary, "scram", `o"hara`)
	cmd.Stdin = strings.NewReader("open sesame\n")
	line, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(line), "sesame") {
		t.Errorf("it shows the password: %s", line)
	}
	users := write(t, "users.txt", string(line))
	s := start(t, pgtest.Shared(t), "auth_type: scram-sha-256", "auth_file: "+users)
	for password, right := range map[string]bool{"open%20sesame": true, "open%20barley": false} {
		c, err := pgx.Connect(t.Context(), s.url("o%22hara", password))
		if (err == nil) != right {
			t.Errorf("with password %s: %v", password, err)
		}
		if err == nil {
			_ = c.Close(context.Background())
		}
	}
}

func TestAVerifierNeedsAUserAndAPassword(t *testing.T) {
	for _, c := range []struct{ args, input, want string }{
		{"scram", "secret\n", "scram takes one argument"},
		{"scram a b", "secret\n", "scram takes one argument"},
		{"scram a", "\n", "the password is empty"},
		{"scram a", "", "the password is empty"},
		{"scram a", "x\x00y\n", "zero byte"},
		{"scram a", strings.Repeat("x", 5000) + "\n", "allowed are 4096"},
	} {
		cmd := exec.Command(binary, strings.Fields(c.args)...)
		cmd.Stdin = strings.NewReader(c.input)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, %s", c.args, err, out)
		}
	}
}
