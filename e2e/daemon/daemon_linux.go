// Package daemon runs a server program for a benchmark, a demonstration or a test: it starts it apart from the terminal,
// waits until it listens, reads what it costs in processor time and memory, and ends it.
//
// It refuses to know what the program does; configuration files are written by those who know.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Options describe one program to run.
type Options struct {
	Path string   // of the binary
	Args []string // without the binary's name
	Env  []string // added to our own
	// Dir is where it runs and where its output goes, into "<name>.log"; it must exist.
	Dir string
	// Listens is the TCP address that accepts connections once the program is ready; empty: nothing is awaited.
	Listens string
	// Unprivileged runs it as the user of the same name; empty: as ourselves. Servers that refuse root need it.
	Unprivileged string
}

// Process is a running program. Whoever started it calls Stop.
type Process struct {
	PID  int
	name string
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// Start runs the program until Stop is called or it ends by itself. The context bounds only the waiting for readiness.
func Start(ctx context.Context, o Options) (*Process, error) {
	p := &Process{name: filepath.Base(o.Path), done: make(chan struct{})}
	p.log = filepath.Join(o.Dir, p.name+".log")
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()

	// Not bound to the context: it is stopped politely, by Stop.
	cmd := exec.Command(o.Path, o.Args...)
	cmd.Dir, cmd.Env = o.Dir, append(os.Environ(), o.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	// A process group of its own: Ctrl-C reaches us alone, and we end things in order. Should we be killed, it is too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if o.Unprivileged != "" {
		if cmd.SysProcAttr.Credential, err = credential(o.Unprivileged); err != nil {
			return nil, err
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.PID = cmd.Process.Pid
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if o.Listens != "" {
		if err := p.await(ctx, o.Listens); err != nil {
			p.Stop(syscall.SIGKILL, time.Second)
			return nil, err
		}
	}
	return p, nil
}

// Stop sends the signal and waits until the program has ended; after the grace period it is killed.
func (p *Process) Stop(signal syscall.Signal, grace time.Duration) {
	_ = syscall.Kill(p.PID, signal)
	select {
	case <-p.done:
	case <-time.After(grace):
		_ = syscall.Kill(-p.PID, syscall.SIGKILL)
		<-p.done
	}
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log is the end of what the program has written.
func (p *Process) Log() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const keep = 2000
	if len(content) > keep {
		content = content[len(content)-keep:]
	}
	return string(bytes.TrimSpace(content))
}

func (p *Process) await(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it listened on %s: %w\n%s", p.name, address, errors.Join(p.err), p.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on %s: %w (%w)\n%s", p.name, address, err, ctx.Err(), p.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// FreePort is a TCP port on 127.0.0.1 that nobody used a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Unprivileged is a user for servers that refuse to run as root: the first of the candidates that exists, or "" when we
// are not root and need nobody else.
func Unprivileged(candidates ...string) string {
	if os.Geteuid() != 0 {
		return ""
	}
	for _, name := range candidates {
		if _, err := user.Lookup(name); err == nil {
			return name
		}
	}
	return ""
}

// Chown gives a file or folder to the user of that name; "" leaves it alone.
func Chown(path, name string) error {
	if name == "" {
		return nil
	}
	c, err := credential(name)
	if err != nil {
		return err
	}
	return os.Chown(path, int(c.Uid), int(c.Gid))
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
