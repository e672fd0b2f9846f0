package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"time"
)

// relayCase is pgbench's read-only transaction, one SELECT by primary key, sent by so many clients as fast as they can.
type relayCase struct {
	protocol string // pgbench's name for it
	clients  int
	tls      bool // to the server
}

// forkTime is a high estimate of what PostgreSQL needs for a new connection on a busy virtual machine.
const forkTime = 60 * time.Millisecond

// relay measures one target for the given time.
func (l *lab) relay(ctx context.Context, c relayCase, at instance, d time.Duration) (sample, error) {
	dir, err := os.MkdirTemp(l.dir, "log-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var cost meter
	if err := cost.start(at); err != nil {
		return nil, err
	}
	// pgbench's clock starts before it connects. A pooler answers at once, PostgreSQL starts a process for each.
	if at.process == nil {
		d += time.Duration(c.clients) * forkTime
	}
	threads := min(c.clients, runtime.NumCPU())
	sslmode := "disable"
	if c.tls && at.process == nil {
		sslmode = "require" // straight to the server
	}
	out, err := l.pgbench(ctx, at.port, sslmode, "-n", "-S", "-M", c.protocol, "-c", fmt.Sprint(c.clients), "-j", fmt.Sprint(threads),
		"-T", fmt.Sprint(int(math.Ceil(d.Seconds()))), "-l", "--log-prefix="+filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	if err := cost.stop(at); err != nil {
		return nil, err
	}
	tps, err := number(out, `(?m)^tps = ([0-9.]+)`)
	if err != nil {
		return nil, err
	}
	done, err := number(out, `(?m)^number of transactions actually processed: ([0-9]+)`)
	if err != nil {
		return nil, err
	}
	if failed, err := number(out, `(?m)^number of failed transactions: ([0-9]+)`); err == nil && failed > 0 {
		return nil, fmt.Errorf("%g transactions failed", failed)
	}
	latencies, err := readLatencies(dir)
	if err != nil {
		return nil, err
	}
	s := latencies.sample()
	s[tpsMetric] = tps
	if at.process != nil {
		s[cpuMetric] = float64(cost.cpu.Microseconds()) / done
		s[peakMetric] = float64(cost.peak)
	}
	return s, nil
}

// readLatencies takes the third column, microseconds, of pgbench's log files: one line per transaction, one file per thread.
func readLatencies(dir string) (latencies, error) {
	files, err := filepath.Glob(filepath.Join(dir, "log.*"))
	if err != nil {
		return nil, err
	}
	var all latencies
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if all, err = appendLatencies(all, content); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("pgbench logged no transaction")
	}
	return all, nil
}

func appendLatencies(all latencies, log []byte) (latencies, error) {
	lines := bufio.NewScanner(bytes.NewReader(log))
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) < 3 {
			return nil, fmt.Errorf("unexpected line %q", lines.Bytes())
		}
		us, err := strconv.ParseInt(string(fields[2]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("unexpected line %q", lines.Bytes())
		}
		all = append(all, time.Duration(us)*time.Microsecond)
	}
	return all, lines.Err()
}

func number(out, pattern string) (float64, error) {
	found := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("pgbench printed nothing like %s:\n%s", pattern, out)
	}
	return strconv.ParseFloat(found[1], 64)
}
