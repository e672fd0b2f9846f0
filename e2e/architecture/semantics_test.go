package architecture

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// docs/semantics.md says of each known trap what proves that the pooler avoids it. Here the table is compared with the
// tests, so that it says what is.

const semantics = "docs/semantics.md"

// Where the files are that a proof with a slash names, and the packages that one with a dot names.
var (
	proofFiles    = map[string]string{"conversations": "pkg/proxy/testdata/conversations", "pool": "pkg/pool/testdata", "session": "pkg/session/testdata"}
	proofPackages = map[string]string{"drivers": "e2e/drivers"} // others are under pkg
)

var (
	semanticsRow = regexp.MustCompile(`^\| ([SM]\d+|CVE-\d+-\d+) \|`)
	proofTerm    = regexp.MustCompile("`([a-z]+)([./])(Test\\w+|[a-z0-9_]+)`")
	unproved     = regexp.MustCompile(`(pending|not yet): \w`)
)

func TestTheTableOfSemanticsIsTrue(t *testing.T) {
	for _, complaint := range semanticsComplaints(t, os.DirFS(root), semanticsIDs()) {
		t.Error(complaint)
	}
}

// semanticsIDs are the rows that must be there.
func semanticsIDs() (ids []string) {
	for n := range 85 {
		ids = append(ids, fmt.Sprint("S", n+1))
	}
	for n := range 24 {
		ids = append(ids, fmt.Sprint("M", n+1))
	}
	return ids
}

func semanticsComplaints(t *testing.T, tree fs.FS, want []string) (complaints []string) {
	t.Helper()
	complain := func(format string, args ...any) { complaints = append(complaints, fmt.Sprintf(format, args...)) }
	table, err := fs.ReadFile(tree, semantics)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]map[string]string{} // by folder: each test's comment
	seen := map[string]bool{}
	for i, line := range strings.Split(string(table), "\n") {
		m := semanticsRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		id, at := m[1], fmt.Sprintf("%s:%d", semantics, i+1)
		if seen[id] {
			complain("%s: %s has a second row", at, id)
		}
		seen[id] = true
		proofs := proofTerm.FindAllStringSubmatch(line, -1)
		if len(proofs) == 0 && !unproved.MatchString(line) {
			complain("%s: %s names no test, and says neither pending: nor not yet:", at, id)
		}
		names := regexp.MustCompile(`\b` + id + `\b`)
		for _, p := range proofs {
			term := strings.Trim(p[0], "`")
			var said string
			if p[2] == "/" {
				content, err := fs.ReadFile(tree, path.Join(proofFiles[p[1]], p[3]+".txt"))
				if err != nil {
					complain("%s: %s is proved by %s, which does not exist", at, id, term)
					continue
				}
				said = remarks(string(content))
			} else {
				dir, special := proofPackages[p[1]]
				if !special {
					dir = "pkg/" + p[1]
				}
				if comments[dir] == nil {
					comments[dir] = testComments(t, tree, dir)
				}
				var there bool
				if said, there = comments[dir][p[3]]; !there {
					complain("%s: %s is proved by %s, which does not exist", at, id, term)
					continue
				}
			}
			if !names.MatchString(said) {
				complain("%s: %s is proved by %s, whose comment does not name %s", at, id, term, id)
			}
		}
	}
	for _, id := range want {
		if !seen[id] {
			complain("%s: %s has no row", semantics, id)
		}
	}
	return complaints
}

// remarks are the lines of a text file that begin with #.
func remarks(text string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool { return !strings.HasPrefix(l, "#") }), "\n")
}

// testComments are the comments of a package's tests, by their names.
func testComments(t *testing.T, tree fs.FS, dir string) map[string]string {
	t.Helper()
	files, err := fs.Glob(tree, dir+"/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range files {
		content, err := fs.ReadFile(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, content, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				all[f.Name.Name] = f.Doc.Text()
			}
		}
	}
	return all
}

func TestEveryRuleOfTheTableOfSemanticsCanFail(t *testing.T) {
	tests := "package proxy\n// TestA has a comment. S1\nfunc TestA(t *T) {}\nfunc TestB(t *T) {}"
	for name, c := range map[string]struct{ row, want string }{
		"no row":                       {"", "S1 has no row"},
		"two rows":                     {"| S1 | x | `proxy.TestA` |\n| S1 | x | `proxy.TestA` |", "second row"},
		"no proof":                     {"| S1 | x | it works |", "names no test"},
		"a test that is gone":          {"| S1 | x | `proxy.TestC` |", "proxy.TestC, which does not exist"},
		"a test of another id":         {"| S1 | x | `proxy.TestB` |", "does not name S1"},
		"a conversation that is gone":  {"| S1 | x | `conversations/b` |", "conversations/b, which does not exist"},
		"a conversation about another": {"| S1 | x | `conversations/a` |", "does not name S1"},
	} {
		t.Run(name, func(t *testing.T) {
			got := semanticsComplaints(t, fstest.MapFS{
				semantics: {Data: []byte(c.row)}, "pkg/proxy/a_test.go": {Data: []byte(tests)},
				"pkg/proxy/testdata/conversations/a.txt": {Data: []byte("# It shows something. S11\nsend S1")},
			}, []string{"S1"})
			if len(got) != 1 || !strings.Contains(got[0], c.want) {
				t.Errorf("got %q, want one complaint with %q in it", got, c.want)
			}
		})
	}
	got := semanticsComplaints(t, fstest.MapFS{
		semantics:             {Data: []byte("| S1 | x | `proxy.TestA` |\n| S2 | x | pending: TLS |\n| S3 | x | not yet: there is no console |")},
		"pkg/proxy/a_test.go": {Data: []byte(tests)},
	}, []string{"S1", "S2", "S3"})
	if len(got) > 0 {
		t.Errorf("accused: %q", got)
	}
}
