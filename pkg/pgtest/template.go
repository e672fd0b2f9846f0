package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// template is a data directory as initdb leaves it, made once per process and copied for each server.
var template struct {
	sync.Mutex
	dir string
}

// newDataDir copies the template to dir/data.
func newDataDir(bin string, o owner, dir string) (string, error) {
	template.Lock()
	defer template.Unlock()
	if template.dir == "" {
		home, err := o.mkdir()
		if err != nil {
			return "", err
		}
		if _, err := removeWhenWeAreGone(home); err != nil {
			return "", err
		}
		err = o.run(home, filepath.Join(bin, "initdb"), "-D", "data", "-U", User, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
		if err != nil {
			return "", err
		}
		template.dir = filepath.Join(home, "data")
	}
	data := filepath.Join(dir, "data")
	return data, o.run(dir, "cp", "-R", "-p", template.dir, data)
}

// removeWhenWeAreGone starts a shell that waits for our end, however it comes, then ends the server in dir, if there is
// one, and deletes dir. It waits for the end of a pipe of which we hold the other end; closing it does the same sooner.
func removeWhenWeAreGone(dir string) (*os.File, error) {
	const script = `read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null &&
	while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
rm -rf -- "$1"`
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", script, "sh", dir)
	cmd.Dir = "/"
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("no shell to clean up after the tests: %w", err)
	}
	held.add(w)
	go reap(cmd)
	return w, nil
}

// reap collects a child's exit status, so that no zombie stays.
func reap(cmd *exec.Cmd) { _ = cmd.Wait() }

// held are files this package keeps for as long as the process lives; CheckLeaks does not count them.
var held = files{fds: map[*os.File]int{}}

type files struct {
	sync.Mutex
	fds map[*os.File]int // referenced here, or the garbage collector would close them
}

func (f *files) add(file *os.File) {
	f.Lock()
	defer f.Unlock()
	f.fds[file] = int(file.Fd())
}

func (f *files) has(fd int) bool {
	f.Lock()
	defer f.Unlock()
	for _, held := range f.fds {
		if held == fd {
			return true
		}
	}
	return false
}

func (f *files) close(file *os.File) {
	f.Lock()
	defer f.Unlock()
	delete(f.fds, file)
	file.Close()
}
