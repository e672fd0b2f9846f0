package session

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// TestScenarios replays testdata/*.txt, one server connection each, and compares with the state written below each step.
//
//	# text             a comment
//	> Parse            a message to the server
//	< ReadyForQuery I  a message from the server
//	the client leaves  what Abandon says is said, and recorded, until it says wait, done or give up; repeated by itself
//	                   after each further message from the server
//	a login            Reset
//
// With -rewrite the states are written anew; commit only a difference you understand.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios in testdata: %v", err)
	}
	seen := map[string]bool{}
	for _, path := range paths {
		name, ok := strings.CutSuffix(filepath.Base(path), ".txt")
		if !ok {
			if filepath.Base(path) != "fuzz" {
				t.Errorf("%s is no scenario: only .txt files are run", path)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := replay(string(want), seen)
			switch {
			case err != nil:
				t.Fatalf("%s:%v", path, err)
			case pgtest.Rewriting():
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			case got != string(want):
				t.Errorf("%s:%s", path, firstDifference(got, string(want)))
			}
		})
	}
	for direction, names := range map[string]map[byte]string{"> ": clientNames, "< ": serverNames} {
		for _, name := range names {
			if !seen[direction+name] {
				t.Errorf("no scenario has %s%s", direction, name)
			}
		}
	}
}

func replay(text string, seen map[string]bool) (string, error) {
	var (
		l    Link
		out  strings.Builder
		left bool
	)
	l.Reset()
	leave := func() error {
		for range 10 {
			step := l.Abandon()
			name, says := strings.CutPrefix(stepNames[step], "say ")
			if !says {
				fmt.Fprintln(&out, state(&l))
				return nil
			}
			fmt.Fprintf(&out, "  > %s\n", name)
			typ, err := typeOf(clientNames, name)
			if err != nil {
				return err
			}
			if err := l.Sent(typ); err != nil {
				return err
			}
		}
		return fmt.Errorf("what to say in place of the client does not end:\n%s", out.String())
	}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "  ") {
			continue // compared as a whole
		}
		fmt.Fprintln(&out, line)
		var err error
		name, status, _ := strings.Cut(strings.TrimLeft(line, "<> "), " ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case line == "the client leaves":
			left = true
		case line == "a login":
			left = false
			l.Reset()
		case strings.HasPrefix(line, "> "):
			left = false
			var typ byte
			if typ, err = typeOf(clientNames, name); err != nil {
				return "", fmt.Errorf("%d: %w", i+1, err)
			}
			err = l.Sent(typ)
		case strings.HasPrefix(line, "< "):
			var typ byte
			if typ, err = typeOf(serverNames, name); err != nil {
				return "", fmt.Errorf("%d: %w", i+1, err)
			}
			if name == "ReadyForQuery" && len(status) != 1 {
				return "", fmt.Errorf("%d: ReadyForQuery needs a status of one character", i+1)
			}
			_, err = l.Received(typ, (status + "\x00")[0])
		default:
			return "", fmt.Errorf("%d: %q is no step", i+1, line)
		}
		seen[line[:2]+name] = true
		if err != nil {
			fmt.Fprintf(&out, "    error: %v\n", err)
		}
		if left {
			if err := leave(); err != nil {
				return "", fmt.Errorf("%d: %w", i+1, err)
			}
			continue
		}
		fmt.Fprintln(&out, state(&l))
	}
	return out.String(), nil
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("%d: got\n%s\nwant\n%s", i+1,
				strings.Join(g[max(0, i-2):min(i+3, len(g))], "\n"), strings.Join(w[max(0, min(i, len(w))-2):min(i+3, len(w))], "\n"))
		}
	}
	return fmt.Sprintf("%d: there are %d lines too many", len(g), len(w)-len(g))
}
