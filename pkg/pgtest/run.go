package pgtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// In test binaries, not in programs that only start servers, there is the flag -rewrite.
func init() {
	if testing.Testing() && flag.Lookup("rewrite") == nil {
		flag.Bool("rewrite", false, "write what was got into the files that say what is expected; review the difference")
	}
}

// Rewriting tells whether the tests were started with -rewrite. Other packages' golden files may ask it too.
func Rewriting() bool {
	f := flag.Lookup("rewrite")
	return f != nil && f.Value.String() == "true"
}

// RunConversations holds every conversation of a directory, a subtest each, and compares what the target says with the
// file. Every file there must be one. With -rewrite the files are changed instead: PostgreSQL's transcripts are believed,
// another target's only where a file says that it differs.
func RunConversations(t *testing.T, dir string, target Target) {
	t.Helper()
	if !slices.Contains(targets, target.Name) {
		t.Fatalf("a target's name is one of %s, not %q", strings.Join(targets, ", "), target.Name)
	}
	conversations, errs := loadConversations(dir)
	for _, err := range errs {
		t.Error(err)
	}
	for _, c := range conversations {
		if c.heldBy(target) {
			t.Run(c.name(), func(t *testing.T) { c.test(t, target) })
		}
	}
}

// loadConversations reads a directory in order of names. What is no conversation is an error.
func loadConversations(dir string) (all []*conversation, errs []error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, []error{err}
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || filepath.Ext(path) != ".txt" {
			errs = append(errs, fmt.Errorf("%s is no conversation: their names end in .txt", path))
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, err := parseConversation(string(text))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		c.path = path
		all = append(all, c)
	}
	if len(all) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("there are no conversations in %s", dir))
	}
	return all, errs
}

func (c *conversation) name() string { return strings.TrimSuffix(filepath.Base(c.path), ".txt") }

func (c *conversation) heldBy(target Target) bool {
	_, refused := c.not[target.Name]
	enough := target.Backends == 0 || c.clients <= target.Backends
	return !refused && enough && (!c.session || target.Session || target.Name == "postgres")
}

func (c *conversation) test(t testing.TB, target Target) {
	t.Helper()
	transcripts, err := c.hold(t.Context(), target)
	if Rewriting() {
		for i := range transcripts {
			if _, own := c.steps[i].differs[target.Name]; !own && target.Name != "postgres" {
				delete(transcripts, i)
			}
		}
		if err := os.WriteFile(c.path, []byte(c.rewrite(target.Name, transcripts)), 0o644); err != nil {
			t.Error(err)
		}
	} else {
		for i := range c.steps {
			s := &c.steps[i]
			got, want := transcripts[i], s.expectation(target.Name).lines
			if s.reads() && !slices.Equal(got, want) {
				t.Errorf("%s:%d: %s %s\n%s", c.path, s.line+1, s.verb, s.arg, difference(got, want))
				break // what follows is likely to be shifted
			}
		}
	}
	if err != nil {
		t.Errorf("%s:%v", c.path, err)
	}
}

// difference shows two transcripts as one, marking what is missing and what is too much.
func difference(got, want []string) string {
	var b strings.Builder
	for len(got) > 0 && len(want) > 0 && got[0] == want[0] {
		fmt.Fprintf(&b, "      %s\n", got[0])
		got, want = got[1:], want[1:]
	}
	var same []string
	for len(got) > 0 && len(want) > 0 && got[len(got)-1] == want[len(want)-1] {
		same = append(same, got[len(got)-1])
		got, want = got[:len(got)-1], want[:len(want)-1]
	}
	for _, l := range want {
		fmt.Fprintf(&b, "want  %s\n", l)
	}
	for _, l := range got {
		fmt.Fprintf(&b, "got   %s\n", l)
	}
	for _, l := range slices.Backward(same) {
		fmt.Fprintf(&b, "      %s\n", l)
	}
	return b.String()
}

// hold holds the dialogue and returns a transcript for each step that reads, as far as it came.
func (c *conversation) hold(ctx context.Context, target Target) (transcripts map[int][]string, err error) {
	transcripts = map[int][]string{}
	if err := target.prepare(ctx, c.setup); err != nil {
		return transcripts, fmt.Errorf("1: setup: %w", err)
	}
	talkers := map[string]*talker{}
	defer func() {
		for _, t := range talkers {
			t.close()
		}
	}()
	for i := range c.steps {
		s := &c.steps[i]
		if err := s.run(ctx, target, talkers); err != nil {
			return transcripts, fmt.Errorf("%d: %w", s.line+1, err)
		}
		if !s.reads() {
			continue
		}
		t := talkers[s.client]
		var got []string
		if s.verb == "parameters" {
			for _, name := range strings.Fields(s.arg) {
				got = append(got, fmt.Sprintf("%s=%q", name, t.params[name]))
			}
		} else if got, err = t.until(s.arg, s.count, ""); err != nil {
			return transcripts, fmt.Errorf("%d: %w", s.line+1, err)
		}
		transcripts[i] = got
	}
	for name, t := range talkers {
		if err := t.leave(); err != nil {
			return transcripts, fmt.Errorf("%d: client %q: %w", len(c.lines), name, err)
		}
	}
	return transcripts, nil
}

// prepare empties the schema, if a dialogue needs anything in it.
func (target Target) prepare(ctx context.Context, setup []string) error {
	if len(setup) == 0 {
		return nil
	}
	t, err := target.aside(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	for _, sql := range append([]string{"drop schema if exists public cascade", "create schema public"}, setup...) {
		if _, err := t.query(sql); err != nil {
			return err
		}
	}
	return t.leave()
}

// run does what a step does apart from reading.
func (s *step) run(ctx context.Context, target Target, talkers map[string]*talker) (err error) {
	switch s.verb {
	case "client":
		talkers[s.client], err = target.login(ctx, s.params)
		return err
	case "dial":
		talkers[s.client], err = target.dial(ctx)
		return err
	case "await":
		return target.await(ctx, s.arg)
	}
	t := talkers[s.client]
	if t == nil && s.client == "" {
		if t, err = target.login(ctx, nil); err != nil {
			return err
		}
		talkers[""] = t
	}
	switch s.verb {
	case "send", "raw":
		b := s.bytes
		if s.params != nil {
			b, err = target.startup(s.params)
		}
		t.queue = append(t.queue, b...)
		return err
	case "cancel":
		t.write()
		return target.cancel(ctx, t)
	case "halfclose":
		return t.halfclose()
	case "close":
		t.write()
		if t.writer != nil {
			<-t.writer
		}
		t.close()
		return nil
	}
	t.write()
	return nil
}

// await repeats a query until it says true.
func (target Target) await(ctx context.Context, sql string) error {
	t, err := target.aside(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	var answer string
	if !await(t.limit, func() bool {
		answer, err = t.query(sql)
		return err != nil || answer == "t"
	}) {
		return fmt.Errorf("after %v it still says %q: %s", t.limit, answer, sql)
	}
	if err != nil {
		return err
	}
	return t.leave()
}

// cancel asks the server to cancel what a client runs, and waits until it has taken note.
func (target Target) cancel(ctx context.Context, of *talker) error {
	t, err := target.dial(ctx)
	if err != nil {
		return err
	}
	defer t.close()
	if t.queue, err = (&pgproto3.CancelRequest{ProcessID: of.pid, SecretKey: of.key}).Encode(nil); err != nil {
		return err
	}
	_, err = t.until("closed", 1, "")
	return err
}

// leave ends a connection that is still open and insists that nothing was left unread.
func (t *talker) leave() error {
	t.queue = append(t.queue, 'X', 0, 0, 0, 4)
	left, err := t.until("closed", 1, "")
	if err == nil && len(left) > 1 {
		err = fmt.Errorf("the dialogue ends with unread messages:\n%s", strings.Join(left, "\n"))
	}
	return err
}
