// Command bench compares the sidecar with PgBouncer and with PostgreSQL itself, in turn, on the machine it runs on.
//
// It measures only from outside: what clients see, and what the kernel says a process cost. It refuses to be a test; it
// prints whether each bar is met and leaves the judgement to the reader.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type settings struct {
	sidecar, pgbouncer string // paths of binaries
	rounds             int
	duration           time.Duration // of one measurement
	cases, targets     []string
	out                string // folder for results; empty: none are kept
}

func main() {
	s, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if err == nil {
		err = run(ctx, s)
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func parse(args []string) (settings, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var s settings
	seconds := flags.Float64("seconds", float(os.Getenv("SECONDS"), 5), "length of one measurement")
	flags.IntVar(&s.rounds, "rounds", int(float(os.Getenv("ROUNDS"), 5)), "how often everything is measured, the targets in turn")
	flags.StringVar(&s.sidecar, "sidecar", "bin/sidecar", "the sidecar's binary; left out when it does not exist")
	flags.StringVar(&s.pgbouncer, "pgbouncer", os.Getenv("PGBOUNCER"), "PgBouncer's binary (default: the installed one)")
	cases := flags.String("cases", "", "comma-separated names or beginnings of names (default all): "+strings.Join(caseNames(), ", "))
	targets := flags.String("targets", strings.Join(targetNames, ","), "comma-separated, in this order")
	flags.StringVar(&s.out, "out", "", "folder for CSV, table and charts (default docs/benchmarks if all cases and targets run, else none)")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	s.duration = time.Duration(*seconds * float64(time.Second))
	if s.rounds < 1 || s.duration < time.Second {
		return s, fmt.Errorf("rounds is %d and seconds %g, allowed are 1 or more of each", s.rounds, *seconds)
	}
	for _, name := range caseNames() {
		if *cases == "" || slices.ContainsFunc(strings.Split(*cases, ","), func(want string) bool {
			return name == want || strings.HasPrefix(name, want+"-")
		}) {
			s.cases = append(s.cases, name)
		}
	}
	if len(s.cases) == 0 {
		return s, fmt.Errorf("no case is called %q; there are %s", *cases, strings.Join(caseNames(), ", "))
	}
	s.targets = strings.Split(*targets, ",")
	for _, name := range s.targets {
		if !slices.Contains(targetNames, name) {
			return s, fmt.Errorf("no target is called %q; there are %s", name, strings.Join(targetNames, ", "))
		}
	}
	if s.pgbouncer == "" {
		for _, candidate := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
			if found, err := exec.LookPath(candidate); err == nil {
				s.pgbouncer = found
				break
			}
		}
	}
	for _, path := range []*string{&s.sidecar, &s.pgbouncer} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return s, err
		}
		*path = abs
	}
	if _, err := os.Stat(s.sidecar); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s does not exist, so the sidecar is left out\n", s.sidecar)
		s.targets = slices.DeleteFunc(s.targets, func(name string) bool { return name == sidecarTarget })
	}
	if s.out == "" && len(s.cases) == len(caseNames()) && len(s.targets) == len(targetNames) {
		s.out = "docs/benchmarks"
	}
	return s, nil
}

func float(text string, otherwise float64) float64 {
	if v, err := strconv.ParseFloat(text, 64); err == nil {
		return v
	}
	return otherwise
}

func run(ctx context.Context, s settings) error {
	dir, err := workingFolder()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lab, err := openLab(ctx, s, dir)
	if err != nil {
		return err
	}
	defer lab.close()

	env := environment(ctx, s, lab)
	fmt.Println(env)
	if lab.prepares = prepares(env.pgbouncer); !lab.prepares && slices.Contains(s.targets, pgbouncerTarget) {
		fmt.Fprintf(os.Stderr, "bench: %s follows no prepared statements, so that protocol is left out\n", env.pgbouncer)
		s.cases = slices.DeleteFunc(s.cases, func(name string) bool { return strings.HasPrefix(name, short["prepared"]) })
	}
	results := &results{}
	for round := range s.rounds {
		// Each round begins with another target, so that none always runs first, when the machine is coolest.
		turn := slices.Concat(s.targets[round%len(s.targets):], s.targets[:round%len(s.targets)])
		if err := lab.round(ctx, s, round, turn, results); err != nil {
			return err
		}
	}
	table := results.table(s)
	fmt.Print(table)
	if s.out == "" {
		return nil
	}
	return publish(s.out, env, results, table)
}

// workingFolder is in memory where the machine has such a place: logs and tables must not wait for a disk.
func workingFolder() (string, error) {
	parent := "/dev/shm"
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "bench")
	if err != nil {
		return "", err
	}
	if err := os.Setenv("TMPDIR", dir); err != nil { // PostgreSQL's files go there too
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}
