package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The superuser and the database every server has. Over the Unix socket User needs no password.
const (
	User     = "postgres"
	Password = "pgtest-secret"
	Database = "postgres"
)

// Auth is how a server authenticates over TCP, and everybody but User over the Unix socket.
type Auth string

const (
	Trust     Auth = "trust"
	Cleartext Auth = "password"
	MD5       Auth = "md5"
	SCRAM     Auth = "scram-sha-256"
)

// Options of a server; the zero value is a good one.
type Options struct {
	MaxConnections int               // 100 if zero
	Auth           Auth              // Trust if empty
	Durable        bool              // keep fsync and its like on, as a real server; tests need none of it
	Settings       map[string]string // further lines of postgresql.conf, such as "shared_buffers": "64MB"
	Files          map[string]string // further files in the data directory, by name, such as "server.crt"
	HBA            []string          // lines of pg_hba.conf for connections over TCP, instead of what Auth says
}

// startTimeout bounds how long a server may take until it answers. Machines under load are slow.
const startTimeout = 60 * time.Second

// Server is a PostgreSQL of our own, on a free loopback port and a Unix socket, in a temporary directory.
// Whoever got it from Launch must Close it; Start and Shared do that themselves.
type Server struct {
	Host      string // 127.0.0.1
	Port      int
	SocketDir string // holds .s.PGSQL.<Port>

	bin     string
	owner   owner
	dir     string // holds all the server has; deleted by Close
	data    string
	cleaner *os.File

	mu     sync.Mutex // guards process; held while it starts and ends
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended; nil while none was started
}

// Start launches a server for one test, which fails if that is impossible.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	s, err := Launch(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

var shared struct {
	sync.Mutex
	server *Server
}

// SharedOptions are those of Shared. A test binary that has others sets them in its TestMain.
var SharedOptions Options

// Shared is one server with SharedOptions for all tests of a test binary. Who uses it may create what it likes, under
// names of its own, and must not stop it. It ends with the process.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		s, err := Launch(tb.Context(), SharedOptions)
		if err != nil {
			tb.Fatal(err)
		}
		shared.server = s
	}
	return shared.server
}

// Launch starts a server and returns when it answers. The context bounds the start only.
func Launch(ctx context.Context, o Options) (*Server, error) {
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	owner, err := serverOwner()
	if err != nil {
		return nil, err
	}
	dir, err := owner.mkdir()
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", SocketDir: dir, bin: bin, owner: owner, dir: dir}
	if s.cleaner, err = removeWhenWeAreGone(dir); err != nil {
		return nil, err
	}
	if err := s.launch(ctx, o); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) launch(ctx context.Context, o Options) (err error) {
	if s.data, err = newDataDir(s.bin, s.owner, s.dir); err != nil {
		return err
	}
	// Somebody else may take the free port before the server does; then another one is tried.
	for attempt := 1; ; attempt++ {
		if s.Port, err = freePort(); err != nil {
			return err
		}
		if err = s.configure(o); err != nil {
			return err
		}
		if err = s.Restart(ctx); err == nil {
			break
		}
		if attempt == 5 || !strings.Contains(s.Log(), "Address already in use") {
			return err
		}
	}
	return s.Exec(ctx, fmt.Sprintf("alter role %s password '%s'", User, Password))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// configure writes postgresql.conf's end and pg_hba.conf.
func (s *Server) configure(o Options) error {
	auth := o.Auth
	if auth == "" {
		auth = Trust
	}
	settings := map[string]string{
		"listen_addresses":        s.Host,
		"port":                    strconv.Itoa(s.Port),
		"unix_socket_directories": s.SocketDir,
		"max_connections":         "100",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"password_encryption":     "scram-sha-256",
		"max_wal_senders":         "0",
		"wal_level":               "minimal",
	}
	if auth == MD5 {
		settings["password_encryption"] = "md5"
	}
	if o.MaxConnections > 0 {
		settings["max_connections"] = strconv.Itoa(o.MaxConnections)
	}
	if !o.Durable {
		for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "autovacuum"} {
			settings[name] = "off"
		}
	}
	maps.Copy(settings, o.Settings)
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	if o.HBA == nil {
		o.HBA = []string{fmt.Sprintf("host all all 127.0.0.1/32 %s", auth)}
	}
	hba := fmt.Sprintf("local all,replication %s trust\nlocal all all %s\n%s\n", User, auth, strings.Join(o.HBA, "\n"))
	files := map[string]string{"postgresql.auto.conf": conf.String(), "pg_hba.conf": hba}
	maps.Copy(files, o.Files)
	for name, text := range files {
		path := filepath.Join(s.data, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if err := s.owner.own(path); err != nil {
			return err
		}
	}
	return nil
}

// Addr is host:port, to dial.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// URL is a connection string over TCP. An empty password is left out.
func (s *Server) URL(user, password, database string) string {
	if password != "" {
		password = ":" + password
	}
	return fmt.Sprintf("postgres://%s%s@%s/%s?sslmode=disable", user, password, s.Addr(), database)
}

// Bin is the path of one of the server's own programs, such as psql or pgbench.
func (s *Server) Bin(program string) string { return filepath.Join(s.bin, program) }

// Log is what the server wrote so far.
func (s *Server) Log() string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

// PID is the postmaster's, 0 while the server is stopped.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return 0
	}
	return s.cmd.Process.Pid
}

func (s *Server) running() bool {
	if s.exited == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Restart stops the server if it runs, starts it on the same port, and returns when it answers.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(syscall.SIGINT)

	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = s.owner.command(s.dir, s.Bin("postgres"), "-D", s.data)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go s.wait(s.cmd, s.exited)
	return s.awaitAnswer(ctx)
}

// wait runs for as long as the postmaster does.
func (s *Server) wait(cmd *exec.Cmd, exited chan<- struct{}) {
	reap(cmd)
	close(exited)
}

func (s *Server) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ask := time.NewTicker(10 * time.Millisecond)
	defer ask.Stop()
	for {
		err := s.Exec(ctx, "select 1")
		if err == nil {
			return nil
		}
		select {
		case <-ask.C:
		case <-s.exited:
			return fmt.Errorf("PostgreSQL ended while starting; its log ends with:\n%s", tail(s.Log(), 2000))
		case <-ctx.Done():
			s.end(syscall.SIGQUIT)
			return fmt.Errorf("PostgreSQL does not answer: %w; its log ends with:\n%s", err, tail(s.Log(), 2000))
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// Stop ends the server as an administrator would: sessions are terminated (57P01), data stay for Restart.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(syscall.SIGINT)
}

// Kill9 ends the postmaster and all backends at once, as if the machine had died, but that its sockets are closed.
func (s *Server) Kill9() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return
	}
	// Stopped first, so that it cannot fork while its children are counted.
	postmaster := s.cmd.Process.Pid
	_ = syscall.Kill(postmaster, syscall.SIGSTOP)
	victims := append(children(postmaster), postmaster)
	for _, pid := range victims {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.exited
	// Shared memory stays in use until the last one is gone, and a new server would not start.
	await(10*time.Second, func() bool { return !slices.ContainsFunc(victims, alive) })
}

// Close ends the server and deletes what it had.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(syscall.SIGQUIT)
	os.RemoveAll(s.dir)
	held.close(s.cleaner)
}

// end sends the signal, and stronger ones if that does not help. The caller holds mu.
func (s *Server) end(how syscall.Signal) {
	for _, signal := range []syscall.Signal{how, syscall.SIGQUIT, syscall.SIGKILL} {
		if !s.running() {
			return
		}
		_ = s.cmd.Process.Signal(signal)
		select {
		case <-s.exited:
		case <-time.After(15 * time.Second):
		}
	}
}

// Backend is a client backend as pg_stat_activity shows it.
type Backend struct {
	PID                                             int
	User, Database, Application, State, Wait, Query string
}

// Backends lists the client backends in order of their start, without the one that asks.
func (s *Server) Backends(ctx context.Context) ([]Backend, error) {
	rows, err := s.Query(ctx, `select pid, usename, datname, application_name, state, wait_event, query
		from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by backend_start, pid`)
	if err != nil {
		return nil, err
	}
	backends := make([]Backend, len(rows))
	for i, r := range rows {
		pid, err := strconv.Atoi(r[0])
		if err != nil {
			return nil, errors.New("pg_stat_activity has a pid that is no number")
		}
		backends[i] = Backend{pid, r[1], r[2], r[3], r[4], r[5], r[6]}
	}
	return backends, nil
}

// children are the processes started by a process, by /proc; none where there is no /proc.
func children(parent int) []int {
	entries, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if _, ppid := stat(pid); err == nil && ppid == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive tells whether a process exists and is more than a zombie, which only waits for its parent.
func alive(pid int) bool {
	state, _ := stat(pid)
	return syscall.Kill(pid, 0) == nil && state != "Z"
}

// stat reads a process's state and parent; zero values where there is no such process or no /proc.
func stat(pid int) (state string, ppid int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// pid (name) state ppid …, where the name may contain anything
	fields := strings.Fields(string(text[1+strings.LastIndexByte(string(text), ')'):]))
	if len(fields) < 2 {
		return "", 0
	}
	ppid, _ = strconv.Atoi(fields[1]) // the kernel writes numbers
	return fields[0], ppid
}

// await looks every few milliseconds whether a condition holds, at most for the given time.
func await(limit time.Duration, holds func() bool) bool {
	deadline := time.After(limit)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-deadline:
			return holds()
		}
	}
	return true
}
