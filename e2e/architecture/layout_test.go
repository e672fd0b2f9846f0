package architecture

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// The top level is fixed, so that a reader finds things where they have always been.
var topFolders = []string{".ci", ".github", "cmd", "docs", "e2e", "manifests", "pkg"}

// generated is what git ignores or owns.
var generated = []string{".git", ".bin", "bin"}

var commands = []string{"injector", "sidecar"}

// Names that explain nothing collect what has no place; a package is named after its noun.
var empty = []string{"common", "helper", "helpers", "misc", "shared", "util", "utils"}

// Words that speak of the place where the text was written instead of the product.
var foreign = []struct {
	pattern *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`(?m)(^|[\s"'=(:` + "`" + `])/(work|root)/[a-zA-Z.]`), "a path on somebody's own machine"},
	{regexp.MustCompile(`https?://(proxy|sum|deb|registry)\.`), "the address of a package registry"},
	{regexp.MustCompile(`\b(TO[D]O|FIX[M]E|XX[X])\b`), "an unfinished place; finish it or take it out"},
	{regexp.MustCompile(`(?i)\bissue #?\d+\b`), "an internal ticket, which readers cannot look up; say what it was about"},
}

func TestTreeKeepsItsShape(t *testing.T) {
	for _, complaint := range layoutComplaints(t, os.DirFS(root)) {
		t.Error(complaint)
	}
}

func layoutComplaints(t *testing.T, tree fs.FS) []string {
	t.Helper()
	var complaints []string
	complain := func(format string, args ...any) { complaints = append(complaints, fmt.Sprintf(format, args...)) }
	walk(t, tree, func(name string, content []byte) {
		parts := strings.Split(path.Dir(name), "/")
		if parts[0] != "." && !slices.Contains(topFolders, parts[0]) {
			complain("%s: the top level has no folder %s; allowed are %s", name, parts[0], strings.Join(topFolders, ", "))
		}
		for _, part := range parts {
			if slices.Contains(empty, part) {
				complain("%s: a folder called %s explains nothing; name it after its noun", name, part)
			}
		}
		if path.Ext(name) == ".go" {
			switch parts[0] {
			case ".":
				complain("%s: no Go file at the top level", name)
			case "cmd":
				if len(parts) != 2 || !slices.Contains(commands, parts[1]) {
					complain("%s: the commands are %s", name, strings.Join(commands, " and "))
				}
			case "pkg":
				if len(parts) != 2 {
					complain("%s: packages are one level under pkg", name)
				} else if _, known := packages[parts[1]]; !known {
					complain("%s: package %s has no entry in the table of packages; enter it with its rule first", name, parts[1])
				}
			}
		}
		// Test data may hold anything, as may text that is not ours.
		if slices.Contains(parts, "testdata") || name == "LICENSE" || name == "go.sum" || bytes.IndexByte(content, 0) >= 0 {
			return
		}
		for _, f := range foreign {
			if at := f.pattern.FindIndex(content); at != nil {
				complain("%s:%d: %q is %s", name, 1+bytes.Count(content[:at[0]], []byte("\n")), bytes.TrimSpace(content[at[0]:at[1]]), f.why)
			}
		}
	})
	slices.Sort(complaints)
	return complaints
}

func TestEveryLayoutRuleCanFail(t *testing.T) {
	for name, c := range map[string]struct{ file, text, want string }{
		"a new top folder":       {"internal/a.go", "package internal", "top level has no folder"},
		"a Go file at the top":   {"a.go", "package a", "no Go file at the top level"},
		"a third command":        {"cmd/other/main.go", "package main", "the commands are"},
		"a package too deep":     {"pkg/pool/deeper/a.go", "package deeper", "one level under pkg"},
		"a package not in table": {"pkg/surprise/a.go", "package surprise", "no entry"},
		"an empty name":          {"e2e/helpers/a.go", "package helpers", "explains nothing"},
		"somebody's path":        {"README.md", "see /ro" + "ot/src/x", "somebody's own machine"},
		"a registry":             {"docs/a.md", "https://pro" + "xy.example", "package registry"},
		"an unfinished place":    {"pkg/pool/a.go", "// TO" + "DO: later", "unfinished"},
		"a ticket":               {"CHANGELOG.md", "fixes iss" + "ue 7", "internal ticket"},
	} {
		t.Run(name, func(t *testing.T) {
			got := layoutComplaints(t, fstest.MapFS{c.file: {Data: []byte(c.text)}})
			if len(got) != 1 || !strings.Contains(got[0], c.want) {
				t.Errorf("got %q, want one complaint with %q in it", got, c.want)
			}
		})
	}
	allowed := fstest.MapFS{
		"pkg/pool/testdata/a.txt": {Data: []byte("/ro" + "ot/x")},
		"pkg/pool/a.go":           {Data: []byte("package pool")},
		"cmd/sidecar/main.go":     {Data: []byte("package main // https://example.org/wo" + "rk/x")},
		"bin/sidecar":             {Data: []byte("TO" + "DO")},
	}
	if got := layoutComplaints(t, allowed); len(got) > 0 {
		t.Errorf("accused: %q", got)
	}
}

// walk hands over every file that belongs to the repository.
func walk(t *testing.T, tree fs.FS, visit func(name string, content []byte)) {
	t.Helper()
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if slices.Contains(generated, name) || path.Base(name) == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		content, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		visit(name, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
