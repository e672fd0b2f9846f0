package architecture

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// listed is what `go list` tells of a package, as far as the rules need it.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string // its own, tests excluded
	Deps       []string // all that gets linked
}

func TestPackagesImportOnlyWhatTheirRuleAllows(t *testing.T) {
	for _, broken := range violations(rules(), goList(t, "-deps", "./...")) {
		t.Error(broken)
	}
}

func TestEveryRuleCanFail(t *testing.T) {
	for _, r := range rules() {
		for _, pattern := range r.forbid {
			culprit := strings.TrimSuffix(pattern, "/...")
			if pattern == others {
				culprit = "example.org/somewhere"
			}
			std := standard(culprit)
			if strings.HasPrefix(culprit, "pkg/") {
				culprit = path.Join(module, culprit)
			}
			// Reached through another package, unless it is the standard library, which only counts when imported directly.
			guilty := listed{ImportPath: path.Join(module, r.pkg), Imports: []string{"between"}, Deps: []string{"between", culprit}}
			if std {
				guilty.Imports = []string{culprit}
			}
			world := []listed{guilty, {ImportPath: "between", Imports: []string{culprit}}, {ImportPath: culprit, Standard: std}}
			if len(violations([]rule{r}, world)) == 0 {
				t.Errorf("%s imports %s and its rule says nothing", r.pkg, culprit)
			}
			innocent := []listed{{ImportPath: guilty.ImportPath, Imports: []string{"fmt"}, Deps: []string{"fmt", "os"}}, {ImportPath: "fmt", Standard: true}, {ImportPath: "os", Standard: true}}
			if got := violations([]rule{r}, innocent); len(got) > 0 {
				t.Errorf("%s imports only fmt and is accused: %v", r.pkg, got)
			}
		}
	}
}

// A rule rots when what it forbids is renamed: then it forbids nothing. So every pattern must name something that exists
// or, among our own packages and those not linked yet, something this table knows.
func TestRulesNameImportsThatExist(t *testing.T) {
	std := map[string]bool{}
	for _, p := range goList(t, "std") {
		std[p.ImportPath] = true
	}
	known := []string{others, kubernetes, controllerRuntime, prometheus, viper, grpc, systemCalls, "k8s.io/client-go/..."}
	for _, r := range rules() {
		for _, pattern := range r.forbid {
			name := strings.TrimSuffix(pattern, "/...")
			_, own := packages[strings.TrimPrefix(name, "pkg/")]
			if !std[name] && !own && !slices.Contains(known, pattern) {
				t.Errorf("the rule for %s forbids %s, which does not exist", r.pkg, pattern)
			}
		}
		if r.why == "" {
			t.Errorf("the rule for %s gives no reason", r.pkg)
		}
	}
}

func violations(rules []rule, graph []listed) []string {
	byPath := map[string]listed{}
	for _, p := range graph {
		byPath[p.ImportPath] = p
	}
	var broken []string
	for _, r := range rules {
		p, exists := byPath[path.Join(module, r.pkg)]
		if !exists {
			continue
		}
		for _, dep := range p.Deps {
			for _, pattern := range r.forbid {
				if !matches(pattern, dep) || byPath[dep].Standard && !slices.Contains(p.Imports, dep) {
					continue
				}
				broken = append(broken, fmt.Sprintf("%s must not import %s (%s), but it does: %s",
					r.pkg, pattern, r.why, chain(byPath, p.ImportPath, dep)))
			}
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

func matches(pattern, importPath string) bool {
	if pattern == others {
		return !standard(importPath) && importPath != module && !strings.HasPrefix(importPath, module+"/")
	}
	if strings.HasPrefix(pattern, "pkg/") {
		pattern = path.Join(module, pattern)
	}
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return importPath == tree || strings.HasPrefix(importPath, tree+"/")
	}
	return importPath == pattern
}

// chain is the shortest way from one package to another, for the reader who has to break it.
func chain(graph map[string]listed, from, to string) string {
	cameFrom := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			break
		}
		for _, next := range graph[queue[0]].Imports {
			if _, seen := cameFrom[next]; !seen {
				cameFrom[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	var steps []string
	for at := to; at != ""; at = cameFrom[at] {
		steps = append(steps, strings.TrimPrefix(at, module+"/"))
	}
	slices.Reverse(steps)
	return strings.Join(steps, " -> ")
}

// standard tells a standard library path by its first element having no dot, as the go command does.
func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return first != "pkg" && !strings.Contains(first, ".")
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Standard,Imports,Deps"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}
