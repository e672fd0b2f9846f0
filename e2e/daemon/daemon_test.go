package daemon

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script, listens string) (*Process, error) {
	t.Helper()
	p, err := Start(t.Context(), Options{Path: "/bin/sh", Args: []string{"-c", script}, Dir: t.TempDir(), Listens: listens})
	if err == nil {
		t.Cleanup(func() { p.Stop(syscall.SIGKILL, time.Minute) })
	}
	return p, err
}

func mustShell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := shell(t, script, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// eventually asks again and again, for a minute at most, as often as the processor allows.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for ticks := time.Tick(5 * time.Millisecond); !holds(); {
		select {
		case <-ticks:
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestStartTellsWhatAFailedProgramSaid(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	_, err = shell(t, "echo no such setting; exit 3", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil || !strings.Contains(err.Error(), "no such setting") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestStopAsksFirst(t *testing.T) {
	p := mustShell(t, `trap 'echo goodbye; exit' TERM; echo ready; while :; do sleep 0.01; done`)
	eventually(t, "the program is ready", func() bool { return p.Log() == "ready" })
	p.Stop(syscall.SIGTERM, time.Minute)
	if got := p.Log(); got != "ready\ngoodbye" {
		t.Errorf("the log is %q", got)
	}
}

func TestStopKillsWhoDoesNotListen(t *testing.T) {
	p := mustShell(t, `trap '' TERM; echo ready; while :; do sleep 0.01; done`)
	eventually(t, "the program is ready", func() bool { return p.Log() == "ready" })
	p.Stop(syscall.SIGTERM, 50*time.Millisecond)
	select {
	case <-p.Done():
	default:
		t.Error("it still runs")
	}
}

func TestCPUCountsWhatTheProgramUses(t *testing.T) {
	p := mustShell(t, `while :; do :; done`)
	eventually(t, "20 ms of processor time", func() bool {
		used, err := p.CPU()
		if err != nil {
			t.Fatal(err)
		}
		return used > 20*time.Millisecond
	})
}

func TestMemoryPeakStaysUntilReset(t *testing.T) {
	p := mustShell(t, `x=$(head -c 8000000 /dev/zero | tr '\0' x); x=; echo ready; while :; do sleep 0.01; done`)
	eventually(t, "the program is ready", func() bool { return p.Log() == "ready" })
	read := func() Memory {
		m, err := p.Memory()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := read(); m.Now <= 0 || m.Peak < m.Now+4000 {
		t.Errorf("after 8 MB were held and let go: %+v KiB", m)
	}
	if err := p.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	if m := read(); m.Peak > m.Now+1000 {
		t.Errorf("after the peak was reset: %+v KiB", m)
	}
}
