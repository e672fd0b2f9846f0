package pgtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The same files are held with the pooler by its own tests.
func TestPostgreSQLSaysWhatTheConversationsExpect(t *testing.T) {
	CheckLeaks(t)
	s := Start(t, Options{})
	RunConversations(t, "../proxy/testdata/conversations", Target{Name: "postgres", Addr: s.Addr(), User: User, Database: Database})
}

func TestBrokenConversationsAreRefused(t *testing.T) {
	const begin = "# Title.\n"
	cases := []struct{ text, want string }{
		{"", "line 1: the file begins with a comment"},
		{"send Query \"x\"\nuntil closed", "line 1: the file begins with a comment"},
		{begin, "there is no dialogue"},
		{begin + "send Query \"x\"", `client "" never reads`},
		{begin + "client a\nclient b\na: until closed", `client "b" never reads`},
		{begin + "send Query x y", "line 2: Query: \"y\" is one value too many"},
		{begin + "sned Query x", `line 2: there is no "sned"`},
		{begin + "until Forever", "line 2: until Forever never ends"},
		{begin + "until ReadyForQuery 0", "line 2: until reads to the first or n-th"},
		{begin + "until ReadyForQuery twice", "line 2: until reads to the first or n-th"},
		{begin + "raw 5", "line 2: encoding/hex"},
		{begin + "raw", "line 2: raw needs bytes"},
		{begin + "await true", "line 2: await needs a query in quotes"},
		{begin + "parameters", "line 2: parameters needs names"},
		{begin + "close now", "line 2: close stands alone"},
		{begin + "a: until closed", `line 2: there is no client "a"`},
		{begin + "client a\nuntil closed", "line 3: whose line?"},
		{begin + "until closed\nclient a", "line 3: clients are named before"},
		{begin + "client a\nclient a", "line 3: client a is there already"},
		{begin + "dial a x=y", "line 2: expected is: client NAME"},
		{begin + "  closed", "line 2: an expected line follows nothing that reads"},
		{begin + "send Sync\n  closed", `line 3: an expected line follows "send", which reads nothing`},
		{begin + "until closed\n\n  closed", "line 4: an expected line stands apart"},
		{begin + "until closed\n closed", "line 3: expected lines are indented by two spaces"},
		{begin + "until closed ", "line 2: expected lines are indented by two spaces"},
		{begin + "session: yes", "line 2: session: true is said before the dialogue"},
		{begin + "until closed\nsession: true", "line 3: session: true is said before the dialogue"},
		{begin + "until closed\nsetup: select 1", "line 3: setup comes before the dialogue"},
		{begin + "setup:", "line 2: setup needs a statement"},
		{begin + "not sidecar", "line 2: not needs one of"},
		{begin + "not nobody: because", "line 2: not needs one of"},
		{begin + "until closed\nnot sidecar: late", "line 3: not is said before the dialogue"},
		{begin + "until closed\ndiffers sidecar:", "line 3: differs needs one of"},
		{begin + "send Sync\ndiffers sidecar: because", "line 3: differs follows what it differs from"},
	}
	for _, c := range cases {
		if _, err := parseConversation(c.text); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %s", c.text, err, c.want)
		}
	}
}

func TestOnlyConversationsAreInTheirDirectory(t *testing.T) {
	dir := t.TempDir()
	if _, errs := loadConversations(dir); len(errs) != 1 || !strings.Contains(errs[0].Error(), "there are no conversations") {
		t.Errorf("an empty directory gives %v", errs)
	}
	for name, text := range map[string]string{"good.txt": "# Title.\nuntil closed\n", "bad.txt": "# Title.\n", "other.md": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, errs := loadConversations(dir)
	if len(all) != 1 || all[0].name() != "good" || len(errs) != 2 ||
		!strings.Contains(errs[0].Error(), "bad.txt: there is no dialogue") || !strings.Contains(errs[1].Error(), "other.md is no conversation") {
		t.Errorf("got %v, %v", all, errs)
	}
}

// answering is a server that knows one answer.
func answering(c *FakeConn) {
	c.Login()
	for {
		c.Answer(c.Query())
	}
}

const answer = `  RowDescription [answer:text]
  DataRow ["hello"]
  CommandComplete "SELECT 1"
  ReadyForQuery I
`

// holdWith holds a conversation with a fake server and returns what the test says about it.
func holdWith(t *testing.T, serve func(*FakeConn), target, text string) string {
	t.Helper()
	f := NewFake(t, serve)
	defer f.Close()
	c, err := parseConversation("# Title.\n" + text)
	if err != nil {
		t.Fatal(err)
	}
	c.path = "file.txt"
	r := &recorder{TB: t}
	c.test(r, Target{Name: target, Addr: f.Addr(), User: "app", Database: "app", patience: 200 * time.Millisecond})
	return r.finish()
}

func TestARightTranscriptPasses(t *testing.T) {
	CheckLeaks(t)
	if got := holdWith(t, answering, "sidecar", "send Query hello\nuntil ReadyForQuery\n"+answer); got != "" {
		t.Error(got)
	}
}

func TestAWrongTranscriptFailsWithTheDifference(t *testing.T) {
	CheckLeaks(t)
	got := holdWith(t, answering, "postgres", "send Query hello\nuntil ReadyForQuery\n"+strings.Replace(answer, "hello", "goodbye", 1))
	want := `file.txt:3: until ReadyForQuery
      RowDescription [answer:text]
want  DataRow ["goodbye"]
got   DataRow ["hello"]
      CommandComplete "SELECT 1"
      ReadyForQuery I
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestUnreadMessagesFail(t *testing.T) {
	CheckLeaks(t)
	got := holdWith(t, answering, "postgres", "send Query hello\nuntil DataRow\n  RowDescription [answer:text]\n  DataRow [\"hello\"]\n")
	if !strings.Contains(got, "unread messages:\nCommandComplete") {
		t.Error(got)
	}
}

func TestASilentServerFailsInTime(t *testing.T) {
	CheckLeaks(t)
	got := holdWith(t, func(c *FakeConn) { c.Login(); c.Query(); c.Row("x"); c.AwaitEnd() }, "postgres", "send Query hello\nuntil ReadyForQuery\n")
	if !strings.Contains(got, "file.txt:3: after 200ms still waiting for ReadyForQuery, got so far:\nDataRow [\"x\"]") {
		t.Error(got)
	}
}

func TestAMessageCutOffFails(t *testing.T) {
	CheckLeaks(t)
	got := holdWith(t, func(c *FakeConn) { c.Login(); c.Query(); c.CloseAfter(7); c.Row("x") }, "postgres", "send Query hello\nuntil closed\n  closed\n")
	if !strings.Contains(got, "the connection was closed within message 'D'") {
		t.Error(got)
	}
	got = holdWith(t, func(c *FakeConn) { c.Login(); c.Query(); c.Frame('D', 3, nil) }, "postgres", "send Query hello\nuntil closed\n  closed\n")
	if !strings.Contains(got, "message 'D' has a length of 3") {
		t.Error(got)
	}
}

func TestAFailedLoginFails(t *testing.T) {
	CheckLeaks(t)
	got := holdWith(t, func(c *FakeConn) { c.Startup(); c.Error("FATAL", "28000", "not you") }, "postgres", "until ReadyForQuery\n")
	if !strings.Contains(got, `file.txt:2: login failed: ErrorResponse FATAL 28000 "not you"`) {
		t.Error(got)
	}
}

func TestATargetMayDifferWithAReason(t *testing.T) {
	CheckLeaks(t)
	text := "send Query hello\nuntil ReadyForQuery\n  nonsense\ndiffers sidecar: it has other habits\n" + answer
	if got := holdWith(t, answering, "sidecar", text); got != "" {
		t.Error(got)
	}
	if got := holdWith(t, answering, "postgres", text); !strings.Contains(got, "want  nonsense") {
		t.Error(got)
	}
}

func TestConversationsAreHeldOnlyByTargetsThatCan(t *testing.T) {
	for text, want := range map[string][3]bool{ // PostgreSQL, sidecar, sidecar in session mode
		"until closed":                        {true, true, true},
		"session: true\nuntil closed":         {true, false, true},
		"not sidecar: because\nuntil closed":  {true, false, false},
		"not postgres: because\nuntil closed": {false, true, true},
	} {
		c, err := parseConversation("# Title.\n" + text)
		if err != nil {
			t.Fatal(err)
		}
		got := [3]bool{c.heldBy(Target{Name: "postgres"}), c.heldBy(Target{Name: "sidecar"}), c.heldBy(Target{Name: "sidecar", Session: true})}
		if got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

func TestRewritingReplacesOnlyTranscripts(t *testing.T) {
	const before = `# Title.
setup: select 1

send Sync
until ReadyForQuery
  old

until closed
differs sidecar: reason
  old here
  and here
# end
`
	c, err := parseConversation(before)
	if err != nil {
		t.Fatal(err)
	}
	got := c.rewrite("sidecar", map[int][]string{2: {"new"}})
	if want := strings.Replace(before, "  old here\n  and here\n", "  new\n", 1); got != want {
		t.Errorf("for the sidecar: got\n%s", got)
	}
	got = c.rewrite("postgres", map[int][]string{1: {"a", "b"}, 2: {"closed"}})
	want := strings.Replace(before, "  old\n", "  a\n  b\n", 1)
	if want = strings.Replace(want, "until closed\n", "until closed\n  closed\n", 1); got != want {
		t.Errorf("for PostgreSQL: got\n%s", got)
	}
	if again, err := parseConversation(got); err != nil || again.rewrite("postgres", map[int][]string{1: {"a", "b"}, 2: {"closed"}}) != got {
		t.Errorf("a second time it is different, %v", err)
	}
}
