package config

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rewrite regenerates the expected texts. Read the diff before committing it: the texts are what operators see.
var rewrite = flag.Bool("rewrite", false, "rewrite the expected texts in testdata")

// Every working_* file loads and every busted_* file is refused; the .want file beside it holds what is said: for a
// working one the rows that are not defaults, the notes and the settings without effect, for a busted one the problems.
func TestConfigurationFilesSayWhatIsExpected(t *testing.T) {
	t.Chdir("testdata")
	inputs := glob(t, "working_*.yaml", "working_*.ini", "busted_*.yaml", "busted_*.ini")
	if len(inputs) < 20 {
		t.Fatalf("only %d inputs found", len(inputs))
	}
	for _, input := range inputs {
		t.Run(input, func(t *testing.T) {
			c, err := Load(Input{Args: []string{input}})
			if working := strings.HasPrefix(input, "working_"); working != (err == nil) {
				t.Fatalf("Load: %v", err)
			}
			if err != nil {
				compareWith(t, input+".want", err.Error()+"\n")
				return
			}
			compareWith(t, input+".want", summary(c))
		})
	}
}

func TestEveryFileOfTestdataIsUsed(t *testing.T) {
	t.Chdir("testdata")
	sources := ""
	for _, input := range glob(t, "*.yaml", "*.ini") {
		data, err := os.ReadFile(input)
		if err != nil {
			t.Fatal(err)
		}
		sources += string(data)
	}
	for _, file := range glob(t, "*") {
		input, isWant := strings.CutSuffix(file, ".want")
		var used bool
		switch {
		case slices.Contains([]string{"fuzz", "render_native.want", "render_pgbouncer.want"}, file):
			used = true
		case isWant:
			_, err := os.Stat(input)
			used = err == nil
		case strings.HasPrefix(file, "working_"), strings.HasPrefix(file, "busted_"):
			_, err := os.Stat(file + ".want")
			used = err == nil
		default:
			used = strings.Contains(sources, file)
		}
		if !used {
			t.Errorf("testdata/%s is used by no test", file)
		}
	}
}

func TestRenderShowsEverySetting(t *testing.T) {
	t.Chdir("testdata")
	native, err := Load(Input{})
	if err != nil {
		t.Fatal(err)
	}
	compareWith(t, "render_native.want", rendered(native))

	ini, err := Load(Input{
		Args: []string{"pgbouncer.ini"},
		Read: files{"pgbouncer.ini": "[pgbouncer]\nauth_file = u\n", "u": ""}.read,
	})
	if err != nil {
		t.Fatal(err)
	}
	compareWith(t, "render_pgbouncer.want", rendered(ini))
}

// summary is the part of Render that a file brought about, with the notes and the settings without effect.
func summary(c *Config) string {
	var b strings.Builder
	for line := range strings.Lines(rendered(c)) {
		if !strings.HasSuffix(line, " default\n") {
			b.WriteString(line)
		}
	}
	for _, note := range c.Notes() {
		b.WriteString("note: " + note + "\n")
	}
	for _, key := range c.Inert() {
		b.WriteString("no effect yet: " + key + "\n")
	}
	return b.String()
}

func rendered(c *Config) string {
	var b strings.Builder
	if err := c.Render(&b); err != nil {
		panic(err)
	}
	return b.String()
}

func compareWith(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (create it with -rewrite); got:\n%s", err, got)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", file, got, want)
	}
}

func glob(t *testing.T, patterns ...string) []string {
	t.Helper()
	var all []string
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return all
}

// files is a file system in memory.
type files map[string]string

func (f files) read(name string) ([]byte, error) {
	if text, ok := f[name]; ok {
		return []byte(text), nil
	}
	return nil, os.ErrNotExist
}
