package daemon

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU is the processor time the program has used so far, all its threads together, including ended ones.
func (p *Process) CPU() (time.Duration, error) {
	// The kernel's numbering of process clocks: the complement of the PID, and 2 for "as scheduled", which counts
	// nanoseconds where /proc counts ticks.
	clock := int32(^p.PID)<<3 | 2
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.name, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory is resident memory in KiB.
type Memory struct {
	Now  int
	Peak int // since the start, or since ResetPeak
}

// Memory reads what the program holds resident.
func (p *Process) Memory() (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		switch key {
		case "VmRSS":
			m.Now, err = strconv.Atoi(number)
		case "VmHWM":
			m.Peak, err = strconv.Atoi(number)
		}
		if err != nil {
			return Memory{}, fmt.Errorf("%s of %s: %w", key, p.name, err)
		}
	}
	return m, nil
}

// ResetPeak makes Memory().Peak start again from what is resident now.
func (p *Process) ResetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.PID), []byte("5"), 0)
}
