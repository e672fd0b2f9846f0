package architecture

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// root is the repository's, seen from this folder.
const root = "../.."

// maxLines keeps a file readable in one go; one that needs a table of contents becomes two.
const maxLines = 600

func TestSourceKeepsTheRules(t *testing.T) {
	for _, complaint := range sourceComplaints(t, os.DirFS(root)) {
		t.Error(complaint)
	}
}

// clock and exits list the selectors that a rule forbids, by import path.
var (
	clock = map[string][]string{
		"time": {"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep"},
	}
	exits = map[string][]string{
		"os":  {"Exit"},
		"log": {"Fatal", "Fatalf", "Fatalln"},
	}
	sleeps = map[string][]string{"time": {"Sleep"}}
)

// sourceComplaints reads every Go file of a tree and says, one sentence each, what breaks a rule.
func sourceComplaints(t *testing.T, tree fs.FS) []string {
	t.Helper()
	var complaints []string
	comments := map[string][]string{} // by folder: files with a package comment
	folders := map[string]bool{}
	fset := token.NewFileSet()
	walk(t, tree, func(name string, content []byte) {
		if path.Ext(name) != ".go" {
			return
		}
		file, err := parser.ParseFile(fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			complaints = append(complaints, err.Error())
			return
		}
		dir, test := path.Dir(name), strings.HasSuffix(name, "_test.go")
		if !test {
			folders[dir] = true
			if file.Doc != nil {
				comments[dir] = append(comments[dir], path.Base(name))
			}
		}
		complain := func(at ast.Node, sentence string) {
			complaints = append(complaints, fmt.Sprintf("%s:%d: %s", name, fset.Position(at.Pos()).Line, sentence))
		}
		if lines := strings.Count(string(content), "\n"); !test && !ast.IsGenerated(file) && lines > maxLines {
			complain(file, fmt.Sprintf("the file has %d lines, allowed are %d; make it two", lines, maxLines))
		}
		isPure := packages[path.Base(dir)] == pure && path.Dir(dir) == "pkg"
		imported := imports(file)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				if isPure && !test {
					complain(n, "a pure package starts no goroutine")
				}
			case *ast.SelectorExpr:
				x, _ := n.X.(*ast.Ident)
				if x == nil {
					return true
				}
				called := func(set map[string][]string) bool { return slices.Contains(set[imported[x.Name]], n.Sel.Name) }
				if isPure && !test && called(clock) {
					complain(n, "a pure package reads no clock: the time is an argument")
				}
				if called(exits) && !test && file.Name.Name != "main" {
					complain(n, "only a command may end the process; return an error")
				}
				if called(sleeps) && test {
					complain(n, "a test awaits the event, it does not sleep")
				}
				if test && (x.Name == "t" || x.Name == "b") && strings.HasPrefix(n.Sel.Name, "Skip") {
					complain(n, "a skipped test proves nothing; make what it needs present")
				}
			}
			return true
		})
	})
	for dir := range folders {
		switch found := comments[dir]; {
		case len(found) == 0:
			complaints = append(complaints, fmt.Sprintf("%s: no package comment; say what the package is and what it refuses to do", dir))
		case len(found) > 1:
			complaints = append(complaints, fmt.Sprintf("%s: package comments in %s; exactly one file has it", dir, strings.Join(found, " and ")))
		}
	}
	slices.Sort(complaints)
	return complaints
}

// imports maps the names by which a file knows the packages it imports to their paths.
func imports(file *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range file.Imports {
		importPath := strings.Trim(spec.Path.Value, `"`)
		name := path.Base(importPath)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = importPath
	}
	return names
}

func TestEverySourceRuleCanFail(t *testing.T) {
	for name, c := range map[string]struct{ file, source, want string }{
		"goroutine in a pure package": {"pkg/pool/a.go", "// Package pool.\npackage pool\nfunc f() { go f() }", "goroutine"},
		"clock in a pure package":     {"pkg/session/a.go", "// Package session.\npackage session\nimport clock \"time\"\nvar x = clock.Now()", "clock"},
		"exit in a library":           {"pkg/proxy/a.go", "// Package proxy.\npackage proxy\nimport \"os\"\nfunc f() { os.Exit(1) }", "end the process"},
		"fatal log in a library":      {"pkg/proxy/a.go", "// Package proxy.\npackage proxy\nimport \"log\"\nfunc f() { log.Fatalf(\"\") }", "end the process"},
		"sleeping test":               {"pkg/proxy/a_test.go", "package proxy\nimport \"time\"\nfunc f() { time.Sleep(1) }", "sleep"},
		"skipped test":                {"pkg/proxy/a_test.go", "package proxy\nfunc f(t *T) { t.SkipNow() }", "skipped"},
		"no package comment":          {"pkg/proxy/a.go", "package proxy", "no package comment"},
		"a file too long":             {"pkg/proxy/a.go", "// Package proxy.\npackage proxy\n" + strings.Repeat("\n", maxLines), "lines"},
		"a file that does not parse":  {"pkg/proxy/a.go", "packige proxy", "expected 'package'"},
	} {
		t.Run(name, func(t *testing.T) {
			got := sourceComplaints(t, fstest.MapFS{c.file: {Data: []byte(c.source)}})
			if len(got) != 1 || !strings.Contains(got[0], c.want) {
				t.Errorf("got %q, want one complaint with %q in it", got, c.want)
			}
		})
	}
	t.Run("two package comments", func(t *testing.T) {
		comment := []byte("// Package proxy.\npackage proxy")
		got := sourceComplaints(t, fstest.MapFS{"pkg/proxy/a.go": {Data: comment}, "pkg/proxy/b.go": {Data: comment}})
		if len(got) != 1 || !strings.Contains(got[0], "a.go and b.go") {
			t.Errorf("got %q, want one complaint about both files", got)
		}
	})
	t.Run("what is allowed", func(t *testing.T) {
		got := sourceComplaints(t, fstest.MapFS{
			"cmd/sidecar/main.go": {Data: []byte("// Command sidecar.\npackage main\nimport \"os\"\nfunc main() { os.Exit(1) }")},
			"pkg/pool/a.go":       {Data: []byte("// Package pool.\npackage pool\nimport \"time\"\nvar x = time.Second")},
			"pkg/proxy/a.go":      {Data: []byte("// Package proxy.\npackage proxy\nimport \"time\"\nfunc f() { go f(); time.Now() }")},
		})
		if len(got) > 0 {
			t.Errorf("accused: %q", got)
		}
	})
}
