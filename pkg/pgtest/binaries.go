package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

var errNoPostgres = errors.New("no PostgreSQL server found (looked for initdb and postgres in $PATH, /usr/lib/postgresql/*/bin and pg_config --bindir): install it, on Debian and Ubuntu with apt-get install postgresql")

// Binaries finds the directory with initdb and postgres: the first of $PATH, then the newest of Debian's, then what
// pg_config says.
func Binaries() (dir string, err error) {
	candidates := filepath.SplitList(os.Getenv("PATH"))
	debian, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well-formed
	slices.SortFunc(debian, func(a, b string) int { return version(b) - version(a) })
	candidates = append(candidates, debian...)
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(out)))
	}
	for _, dir := range candidates {
		// A link from $PATH leads to where all of a version's programs are.
		postgres, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
		if err != nil {
			continue
		}
		dir := filepath.Dir(postgres)
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
			return dir, nil
		}
	}
	return "", errNoPostgres
}

// version is the number in /usr/lib/postgresql/15/bin, 0 if there is none.
func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// owner is who runs the server. PostgreSQL refuses root, so root steps down to a system user.
type owner struct {
	name string
	cred *syscall.Credential // nil: as we are
}

func serverOwner() (owner, error) {
	if os.Geteuid() != 0 {
		return owner{}, nil
	}
	for _, name := range []string{"postgres", "nobody", "daemon"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return owner{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return owner{}, errors.New("PostgreSQL refuses to run as root and there is no user postgres, nobody or daemon to run it as")
}

// mkdir makes a temporary directory the server may use. The path is short, since a socket's may have 107 bytes only.
func (o owner) mkdir() (string, error) {
	dir, err := os.MkdirTemp("", "pgtest")
	if err == nil && len(dir) > 80 {
		os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", "pgtest")
	}
	if err != nil {
		return "", fmt.Errorf("no temporary directory for PostgreSQL: %w", err)
	}
	return dir, o.own(dir)
}

func (o owner) own(path string) error {
	if o.cred == nil {
		return nil
	}
	return os.Chown(path, int(o.cred.Uid), int(o.cred.Gid))
}

// command runs a program as the owner in a directory it may enter, apart from our terminal's signals and from PG*
// variables that would change what it does.
func (o owner) command(dir, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: o.cred}
	return cmd
}

func (o owner) run(dir, program string, args ...string) error {
	if out, err := o.command(dir, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s failed: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}
