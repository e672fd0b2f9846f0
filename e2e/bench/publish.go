package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// machine says what a run was made on and with: numbers without it mean nothing.
type machine struct {
	cpu, kernel, memory, pgbouncer, sidecar, postgres string
}

func environment(ctx context.Context, s settings, l *lab) machine {
	ask := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			return "unknown"
		}
		return version(string(out))
	}
	m := machine{
		cpu:       field("/proc/cpuinfo", "model name"),
		memory:    "unknown memory",
		kernel:    ask("uname", "-sr"),
		postgres:  ask(l.postgres.Bin("postgres"), "--version"),
		pgbouncer: ask(s.pgbouncer, "--version"),
		sidecar:   "no sidecar",
	}
	if kib, err := strconv.Atoi(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		m.memory = fmt.Sprintf("%d GiB", (kib+1<<19)>>20)
	}
	if _, err := os.Stat(s.sidecar); err == nil {
		m.sidecar = ask(s.sidecar, "--version")
	}
	return m
}

func (m machine) String() string { return m.hardware() + "; " + m.software() }

func (m machine) hardware() string {
	return fmt.Sprintf("%s, %d cores, %s, %s", m.cpu, runtime.NumCPU(), m.memory, m.kernel)
}

func (m machine) software() string {
	return fmt.Sprintf("%s; %s; %s, %s", m.postgres, m.pgbouncer, m.sidecar, runtime.Version())
}

// field is the first value of a key in one of the kernel's "key : value" files.
func field(file, key string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// slug names a run's files after its rival: "PgBouncer 1.24.1" gives "pgbouncer-1.24.1".
func (m machine) slug() string {
	return strings.ReplaceAll(strings.ToLower(m.pgbouncer), " ", "-")
}

// publish writes all values as CSV, the table as Markdown and the charts as SVG.
func publish(dir string, m machine, r *results, table string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := m.slug()
	var values bytes.Buffer
	if err := r.csv(&values); err != nil {
		return err
	}
	text := fmt.Sprintf("# Sidecar and %s\n\nMade by `make bench` on: %s.\n\n![charts](%s.svg)\n%s", m.pgbouncer, m, name, table)
	for suffix, content := range map[string][]byte{".csv": values.Bytes(), ".md": []byte(text), ".svg": charts(r, m)} {
		if err := os.WriteFile(filepath.Join(dir, name+suffix), content, 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("written to %s: %s.csv, .md, .svg\n", dir, name)
	return nil
}
