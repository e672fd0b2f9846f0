package pool

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata; commit only a difference you understand")

// TestScenarios runs testdata/*.txt. A file is a list of blocks: command lines, a line of four dashes, the expected
// output, an empty line. Lines that start with # are comments. The commands are in the table of verbs.
func TestScenarios(t *testing.T) {
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".txt")
		if !ok {
			t.Errorf("testdata/%s is no scenario: only .txt files are run", entry.Name())
			continue
		}
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", entry.Name())
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := newScenario(used).run(source)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if *rewrite {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(got, source) {
				t.Errorf("%s: %s", path, firstDifference(string(got), string(source)))
			}
		})
	}
	for name := range verbs {
		if !used[name] {
			t.Errorf("no scenario uses the verb %s", name)
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d\ngot:\n%s\nwant:\n%s", i+1,
				strings.Join(g[i:min(i+4, len(g))], "\n"), strings.Join(w[min(i, len(w)):min(i+4, len(w))], "\n"))
		}
	}
	return fmt.Sprintf("the file has %d lines more than expected", len(w)-len(g))
}

// scenario is a caller with names for things: clients as the file names them, backends b1, b2, ... as they open.
type scenario struct {
	ps       *Pools
	now      Time
	clients  map[string]*Client
	backends map[string]*Backend
	used     map[string]bool
	out      strings.Builder
}

func newScenario(used map[string]bool) *scenario {
	return &scenario{ps: New(1), clients: map[string]*Client{}, backends: map[string]*Backend{}, used: used}
}

func (s *scenario) run(source []byte) ([]byte, error) {
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(source))
	inOutput := false
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		switch {
		case inOutput:
			if line == "" {
				inOutput = false
				fmt.Fprintln(&out)
			}
			continue // the expected output is compared as a whole
		case line == "----":
			inOutput = true
			fmt.Fprintln(&out, line)
			out.WriteString(s.out.String())
			s.out.Reset()
			out.WriteString(s.state())
			continue
		case line != "" && !strings.HasPrefix(line, "#"):
			if err := s.do(line); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		fmt.Fprintln(&out, line)
	}
	if s.out.Len() > 0 {
		return nil, fmt.Errorf("the commands after the last ---- have output: %s", s.out.String())
	}
	return out.Bytes(), lines.Err()
}

// do runs one command and writes its effects.
func (s *scenario) do(line string) (err error) {
	fields := strings.Fields(line)
	run, ok := verbs[fields[0]]
	if !ok {
		return fmt.Errorf("unknown verb %q", fields[0])
	}
	s.used[fields[0]] = true
	defer func() {
		if bug := recover(); bug != nil {
			text, ok := bug.(string)
			if !ok || !strings.HasPrefix(text, "pool: ") {
				panic(bug)
			}
			fmt.Fprintf(&s.out, "panic: %s\n", text)
		}
		s.drain()
		if err == nil {
			err = s.ps.check(s.now)
		}
	}()
	if err := run(s, fields[1:]); err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	return nil
}

func (s *scenario) name(b *Backend) {
	name := "b" + strconv.Itoa(len(s.backends)+1)
	s.backends[name] = b
	b.Ref = name
}

func (s *scenario) drain() {
	for _, e := range s.ps.Effects() {
		if e.Kind == Open {
			s.name(e.Backend)
		}
		fmt.Fprintln(&s.out, describe(e))
	}
}

func describe(e Effect) string {
	text := e.Kind.String()
	if e.Client != nil {
		text += fmt.Sprint(" ", e.Client.Ref)
	}
	if e.Backend != nil {
		text += fmt.Sprint(" ", e.Backend.Ref)
	}
	if e.Kind == Open {
		k := e.Backend.Pool().Key()
		text += " for " + k.Database + "/" + k.User
	}
	if e.Reason != NoReason {
		text += ": " + e.Reason.String()
	}
	return text
}

// state draws every pool in a line: who waits, and the backends by state.
func (s *scenario) state() string {
	var out strings.Builder
	for _, p := range s.ps.All() {
		fmt.Fprintf(&out, "%s/%s", p.key.Database, p.key.User)
		if p.retired {
			out.WriteString(" (retired)")
		}
		fmt.Fprintf(&out, " clients %d", p.clients)
		sep := ": "
		part := func(name string, items []string) {
			if len(items) > 0 {
				fmt.Fprintf(&out, "%s%s %s", sep, name, strings.Join(items, " "))
				sep = ", "
			}
		}
		var waiting []string
		for c := p.waiters.head; c != nil; c = c.next {
			waiting = append(waiting, c.Ref.(string))
		}
		part("waiting", waiting)
		for state := Opening; state <= Closing; state++ {
			var names []string
			for b := p.all.head; b != nil; b = b.links[poolLink].next {
				if b.state == state {
					name := b.Ref.(string)
					if b.client != nil {
						name += "=" + b.client.Ref.(string)
					}
					names = append(names, name)
				}
			}
			part(state.String(), names)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func parseKey(s string) (Key, error) {
	database, user, ok := strings.Cut(s, "/")
	if !ok {
		return Key{}, fmt.Errorf("%q is not database/user", s)
	}
	return Key{database, user}, nil
}

func (s *scenario) pool(name string) (*Pool, error) {
	k, err := parseKey(name)
	if err != nil {
		return nil, err
	}
	if p := s.ps.Lookup(k); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no pool %s", name)
}

// apply sets what key=value arguments say.
func apply(set *Settings, args []string) error {
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		number, numErr := strconv.Atoi(value)
		span, spanErr := time.ParseDuration(value)
		var err error
		switch name {
		case "server":
			set.Server = value
		case "mode":
			i := slices.Index(modeNames[:], value)
			if i < 0 {
				return fmt.Errorf("no mode %q", value)
			}
			set.Mode = Mode(i)
		case "size":
			set.Size, err = number, numErr
		case "min":
			set.MinSize, err = number, numErr
		case "reserve":
			set.ReserveSize, err = number, numErr
		case "connecting":
			set.MaxConnecting, err = number, numErr
		case "reserve_timeout":
			set.ReserveTimeout, err = span, spanErr
		case "wait_timeout":
			set.QueryWaitTimeout, err = span, spanErr
		case "lifetime":
			set.ServerLifetime, err = span, spanErr
		case "idle_timeout":
			set.ServerIdleTimeout, err = span, spanErr
		case "check_delay":
			set.Check = true
			set.CheckDelay, err = span, spanErr
		case "retry":
			set.LoginRetry, err = span, spanErr
		case "reset":
			set.Reset = true
		case "round_robin":
			set.RoundRobin = true
		case "warm":
			set.KeepWarm = true
		default:
			return fmt.Errorf("no setting %q", name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}

// verbs are the commands of scenario files.
var verbs = map[string]func(s *scenario, args []string) error{
	// pool shop/ann size=2: makes a pool. The settings not given are: transaction mode, server h, lifetime 1h,
	// 10 attempts at once.
	"pool": func(s *scenario, args []string) error {
		k, err := parseKey(args[0])
		if err != nil {
			return err
		}
		set := Settings{Server: "h", Mode: Transaction, ServerLifetime: time.Hour, MaxConnecting: 10, LoginRetry: 15 * time.Second}
		if err := apply(&set, args[1:]); err != nil {
			return err
		}
		s.ps.Ensure(s.now, k, set)
		return nil
	},
	// settings shop/ann size=1: changes settings of a pool.
	"settings": func(s *scenario, args []string) error {
		p, err := s.pool(args[0])
		if err != nil {
			return err
		}
		set := p.Settings()
		if err := apply(&set, args[1:]); err != nil {
			return err
		}
		s.ps.Reconfigure(s.now, p, set)
		return nil
	},
	"retire":  onPool((*Pools).Retire),
	"recycle": onPool((*Pools).Recycle),
	// limit database_backends shop 2
	"limit": func(s *scenario, args []string) error {
		scopes := []string{"all_clients", "database_clients", "user_clients", "database_backends", "user_backends"}
		scope := slices.Index(scopes, args[0])
		n, err := strconv.Atoi(args[len(args)-1])
		if scope < 0 || err != nil {
			return fmt.Errorf("want a scope of %v, a name and a number", scopes)
		}
		name := ""
		if len(args) == 3 {
			name = args[1]
		}
		s.ps.SetLimit(s.now, Scope(scope), name, n)
		return nil
	},
	// capacity h 3 deadline=10s: the deadline counts from now; without one there is none.
	"capacity": func(s *scenario, args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		deadline := Never
		if len(args) == 3 {
			d, err := time.ParseDuration(strings.TrimPrefix(args[2], "deadline="))
			if err != nil {
				return err
			}
			deadline = s.now + d
		}
		s.ps.SetCapacity(s.now, args[0], n, deadline)
		return nil
	},
	// connect shop/ann c1 c2: makes and connects clients.
	"connect": func(s *scenario, args []string) error {
		p, err := s.pool(args[0])
		if err != nil {
			return err
		}
		for _, name := range args[1:] {
			c := &Client{Ref: name}
			if old := s.clients[name]; old != nil {
				c = old
			}
			if err := s.ps.Connect(s.now, p, c); err != nil {
				fmt.Fprintf(&s.out, "%s: %v\n", name, err)
				continue
			}
			s.clients[name] = c
		}
		return nil
	},
	// probe shop/ann 1: an attempt that nobody asked for, if one more could be opened after it.
	"probe": func(s *scenario, args []string) error {
		p, err := s.pool(args[0])
		if err != nil {
			return err
		}
		spare, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if b := s.ps.Probe(s.now, p, spare); b != nil {
			s.name(b)
			fmt.Fprintf(&s.out, "probe %v\n", b.Ref)
		} else {
			fmt.Fprintln(&s.out, "no room for a probe")
		}
		return nil
	},
	"disconnect": onClients((*Pools).Disconnect),
	"acquire":    onClients((*Pools).Acquire),
	"opened":     onBackends((*Pools).Opened),
	"release":    onBackends((*Pools).Release),
	"ready":      onBackends((*Pools).Ready),
	"unlink":     onBackends((*Pools).Unlink),
	"closed":     onBackends((*Pools).Closed),
	"failed": onBackends(func(ps *Pools, now Time, b *Backend) {
		ps.OpenFailed(now, b, false)
	}),
	"refused": onBackends(func(ps *Pools, now Time, b *Backend) { // for good
		ps.OpenFailed(now, b, true)
	}),
	"pressed_role":     onBackends(func(ps *Pools, now Time, b *Backend) { ps.Pressed(now, b, OnRole) }),
	"pressed_database": onBackends(func(ps *Pools, now Time, b *Backend) { ps.Pressed(now, b, OnDatabase) }),
	"pressed_server":   onBackends(func(ps *Pools, now Time, b *Backend) { ps.Pressed(now, b, OnServer) }),
	"dismiss":          onBackends(func(ps *Pools, now Time, b *Backend) { ps.Dismiss(now, b, AddressGone) }),
	"discard": onBackends(func(ps *Pools, now Time, b *Backend) {
		ps.Discard(now, b, ServerCrashed)
	}),
	// tick 5s: time passes, then Tick. tick next: to the time of Next.
	"tick": func(s *scenario, args []string) error {
		if args[0] == "next" {
			at, ok := s.ps.Next()
			if !ok {
				return fmt.Errorf("nothing is pending")
			}
			s.now = max(s.now, at)
			fmt.Fprintf(&s.out, "now %v\n", s.now.Round(time.Millisecond))
		} else if err := s.pass(args[0]); err != nil {
			return err
		}
		s.ps.Tick(s.now)
		return nil
	},
	// pass 5s: time passes without a Tick.
	"pass": func(s *scenario, args []string) error { return s.pass(args[0]) },
	// next: prints when Tick is due.
	"next": func(s *scenario, _ []string) error {
		if at, ok := s.ps.Next(); ok {
			fmt.Fprintf(&s.out, "next %v\n", at.Round(time.Millisecond))
		} else {
			fmt.Fprintln(&s.out, "next never")
		}
		return nil
	},
	"stats": func(s *scenario, args []string) error {
		p, err := s.pool(args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(&s.out, "%+v\n", p.Stats())
		return nil
	},
	"server": func(s *scenario, args []string) error {
		open, opening, closing, capacity := s.ps.ServerStats(args[0])
		fmt.Fprintf(&s.out, "open %d opening %d closing %d capacity %d\n", open, opening, closing, capacity)
		return nil
	},
}

func (s *scenario) pass(span string) error {
	d, err := time.ParseDuration(span)
	s.now += d
	return err
}

func onPool(call func(*Pools, Time, *Pool)) func(*scenario, []string) error {
	return func(s *scenario, args []string) error {
		p, err := s.pool(args[0])
		if err == nil {
			call(s.ps, s.now, p)
		}
		return err
	}
}

func onClients(call func(*Pools, Time, *Client)) func(*scenario, []string) error {
	return func(s *scenario, args []string) error {
		for _, name := range args {
			c := s.clients[name]
			if c == nil {
				return fmt.Errorf("no client %s", name)
			}
			call(s.ps, s.now, c)
			s.drain()
		}
		return nil
	}
}

func onBackends(call func(*Pools, Time, *Backend)) func(*scenario, []string) error {
	return func(s *scenario, args []string) error {
		for _, name := range args {
			b := s.backends[name]
			if b == nil {
				return fmt.Errorf("no backend %s", name)
			}
			call(s.ps, s.now, b)
			s.drain()
		}
		return nil
	}
}
