package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestYAMLShapes(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "",
		"# only a comment\n":                "",
		"---\n":                             "",
		"~":                                 "",
		"databases:\nusers: []\npeers: ~\n": "",
		"\ufeffpool_mode: session\n":        "",
		"a: &a [*a]":                        `c.yaml:1: "a" holds a list inside its list; allowed: a list of single values`,
		"? *a\n: 1":                         "c.yaml: not YAML: a value that starts with * must be quoted",
		"job_name: &a x\n*a : y":            "c.yaml:2: a key is not a plain word",
		"job_name: x\n<<: {pool_mode: x}":   `c.yaml:2: "<<" is a mapping; allowed: a single value`,
		"just text":                         "c.yaml:1: not a mapping; allowed: settings such as pool_mode: transaction",
		"a: b: c":                           "c.yaml: not YAML: mapping values are not allowed in this context",
		"a: 1\nb: 'x":                       "c.yaml:2: not YAML: found unexpected end of stream",
		"[":                                 "c.yaml:1: not YAML: did not find expected node content",
		"a: \x01":                           "c.yaml: not YAML: control characters are not allowed",
		"a: \xff":                           "c.yaml: not YAML: invalid leading UTF-8 octet",
	} {
		_, err := Load(Input{Args: []string{"c.yaml"}, Read: files{"c.yaml": text}.read})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestYAMLErrorsQuoteNothing(t *testing.T) {
	for text, want := range map[string]string{
		"yaml: line 7: found 'hunter2' here":        "7 found … here",
		"yaml: unknown anchor 'hunter2' referenced": "0 a value that starts with * must be quoted",
		"yaml: line 2: a \"b\" and `c`":             "2 a … and …",
		"yaml: control characters are not allowed":  "0 control characters are not allowed",
	} {
		line, got := yamlError(errors.New(text))
		if got = fmt.Sprint(line, " ", got); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// FuzzYAML: any bytes end in a Config that can be shown or in problems that lie within the file.
func FuzzYAML(f *testing.F) {
	for _, seed := range []string{
		"pool_mode: session\nlisten_addr: [a, 'b']\n", "databases:\n- {name: &x App.One, host: *x}\n", "---\nusers:\n- name: u\n  pool_size: 0x1\n",
		"? [a]\n: b\nverbose: |\n  1\n", "log_stats: no # x\npeers: ~\n", "a: &a [*a]\n<<: {b: \"\\0\"}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Load(Input{Args: []string{"c.yaml"}, Read: files{"c.yaml": string(data)}.read})
		if err == nil {
			again, ch := c.Reload(c)
			if !ch.None() || rendered(again) != rendered(c) {
				t.Fatalf("reloading itself brings %+v", ch)
			}
			return
		}
		var problems Problems
		if !errors.As(err, &problems) || len(problems) == 0 || c != nil {
			t.Fatalf("%v beside %v", err, c)
		}
		lines := strings.Count(strings.ReplaceAll(string(data), "\r", "\n"), "\n") + 2
		for _, p := range problems {
			if p.Where.Line < 0 || p.Where.Line > lines || strings.ContainsAny(p.String(), "\n\x00") {
				t.Fatalf("bad problem %q", p.String())
			}
		}
	})
}
