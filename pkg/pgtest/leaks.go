package pgtest

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// quiescence is how long goroutines may take to end and descriptors to be closed once a test is over.
const quiescence = 10 * time.Second

// CheckLeaks lets a test fail that ends with more goroutines or file descriptors than it had here. Call it first, so that
// it looks last, and not in parallel tests, which see each other. Where there is no /proc only goroutines are compared.
// What belongs to servers of this package is not counted; a Fake is, until closed.
func CheckLeaks(tb testing.TB) {
	tb.Helper()
	checkLeaks(tb, quiescence)
}

func checkLeaks(tb testing.TB, limit time.Duration) {
	tb.Helper()
	startNetpoll()
	goroutinesBefore, fdsBefore := goroutines(), descriptors()
	tb.Cleanup(func() {
		tb.Helper()
		if tb.Failed() {
			return // what was abandoned says nothing
		}
		var leaked []string
		await(limit, func() bool {
			leaked = append(surplus(goroutines(), goroutinesBefore), surplus(descriptors(), fdsBefore)...)
			return len(leaked) == 0
		})
		for _, l := range leaked {
			tb.Errorf("leaked: %s", l)
		}
	})
}

// startNetpoll makes the runtime open the descriptors it keeps for ever.
func startNetpoll() {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
}

// surplus are the values of now whose keys were not there before, in order.
func surplus(now, before map[string]string) []string {
	var more []string
	for key, value := range now {
		if _, ok := before[key]; !ok {
			more = append(more, value)
		}
	}
	slices.Sort(more)
	return more
}

// background are parts of stacks which belong to nobody's test.
var background = []string{
	"pgtest.reap(", "pgtest.(*Server).wait(", "os/signal.signal_recv", "os/signal.loop", "runtime.ensureSigM", "testing.(*T).Run(", "testing.tRunner.func",
}

// goroutines are the stacks of all goroutines but this one, by number.
func goroutines() map[string]string {
	buf := make([]byte, 1<<16)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	all := map[string]string{}
	for i, stack := range strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n") {
		// "goroutine 18 [chan receive]:"; the first one is who asks
		fields := strings.Fields(stack)
		if i == 0 || len(fields) < 2 || slices.ContainsFunc(background, func(part string) bool { return strings.Contains(stack, part) }) {
			continue
		}
		all[fields[1]] = stack
	}
	return all
}

// descriptors are what the process has open, by number and what it is.
func descriptors() map[string]string {
	links, _ := filepath.Glob("/proc/self/fd/*") // the pattern is well-formed
	all := map[string]string{}
	for _, link := range links {
		what, err := os.Readlink(link)
		fd, errFD := strconv.Atoi(filepath.Base(link))
		// Gone meanwhile (such as the directory just read), a child's descriptor that os.Process keeps, or ours.
		if err != nil || errFD != nil || strings.Contains(what, "pidfd") || held.has(fd) {
			continue
		}
		s := "fd " + strconv.Itoa(fd) + " is " + what
		all[s] = s
	}
	return all
}
