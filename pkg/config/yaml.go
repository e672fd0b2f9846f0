package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseYAML reads the native form: settings at the top level, and the lists databases, users and peers.
func parseYAML(file string, data []byte, ps *Problems) (doc document, whole bool) {
	at := func(line int) Origin { return Origin{Source: FromFile, Name: file, Line: line} }
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	if err := decoder.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			return doc, true
		}
		line, text := yamlError(err)
		ps.add(at(line), "not YAML: %s", text)
		return doc, false
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		ps.add(at(0), "more than one YAML document; allowed: one")
	}
	top := root.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return doc, true
	}
	if top.Kind != yaml.MappingNode {
		ps.add(at(top.Line), "not a mapping; allowed: settings such as pool_mode: transaction")
		return doc, false
	}
	eachKey(top, at, "", ps, func(key string, where Origin, value *yaml.Node) {
		switch key {
		case "databases":
			doc.databases = yamlEntries(key, value, at, ps)
		case "users":
			doc.users = yamlEntries(key, value, at, ps)
		case "peers":
			doc.peers = yamlEntries(key, value, at, ps)
		default:
			if p, ok := yamlPair(key, value, where, "", ps); ok {
				doc.settings = append(doc.settings, p)
			}
		}
	})
	return doc, true
}

// eachKey walks a mapping; label names it in problems.
func eachKey(mapping *yaml.Node, at func(int) Origin, label string, ps *Problems, visit func(string, Origin, *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], resolve(mapping.Content[i+1])
		if key.Kind != yaml.ScalarNode {
			ps.add(at(key.Line), "%sa key is not a plain word", label)
			continue
		}
		if line, twice := seen[key.Value]; twice {
			ps.add(at(key.Line), "%s%s is given twice, first in line %d", label, shown(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		visit(key.Value, at(key.Line), value)
	}
}

func yamlEntries(kind string, list *yaml.Node, at func(int) Origin, ps *Problems) []entry {
	if list.Kind == yaml.ScalarNode && list.Tag == "!!null" {
		return nil
	}
	if list.Kind != yaml.SequenceNode {
		ps.add(at(list.Line), "%s is not a list; allowed: items such as - name: app", kind)
		return nil
	}
	var entries []entry
	for _, item := range list.Content {
		item = resolve(item)
		if item.Kind != yaml.MappingNode {
			ps.add(at(item.Line), "an item of %s is not a mapping; allowed: items such as - name: app", kind)
			continue
		}
		e := entry{at: at(item.Line)}
		eachKey(item, at, kind+": ", ps, func(key string, where Origin, value *yaml.Node) {
			p, ok := yamlPair(key, value, where, kind+": ", ps)
			switch {
			case !ok:
			case key == "name":
				e.name = p.text
			default:
				e.pairs = append(e.pairs, p)
			}
		})
		entries = append(entries, e)
	}
	return entries
}

// yamlPair takes the text of a scalar as written, so that a password of digits stays what it is.
func yamlPair(key string, value *yaml.Node, at Origin, label string, ps *Problems) (pair, bool) {
	switch value.Kind {
	case yaml.ScalarNode:
		return pair{key: key, text: scalar(value), at: at}, true
	case yaml.SequenceNode:
		items := make([]string, len(value.Content))
		for i, item := range value.Content {
			if item = resolve(item); item.Kind != yaml.ScalarNode {
				ps.add(at, "%s%s holds a list inside its list; allowed: a list of single values", label, shown(key))
				return pair{}, false
			}
			items[i] = scalar(item)
		}
		return pair{key: key, text: strings.Join(items, ","), list: true, at: at}, true
	}
	ps.add(at, "%s%s is a mapping; allowed: a single value", label, shown(key))
	return pair{}, false
}

func scalar(n *yaml.Node) string {
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

var (
	yamlLine   = regexp.MustCompile(`line (\d+): `)
	yamlQuoted = regexp.MustCompile("'.*'|\".*\"|`.*`")
)

// yamlError takes the parser's message apart. What it quotes goes: it may be a password somebody forgot to quote.
func yamlError(err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = strings.Replace(text, m[0], "", 1)
	}
	if strings.Contains(text, "unknown anchor") {
		return line, "a value that starts with * must be quoted"
	}
	return line, yamlQuoted.ReplaceAllString(text, "…")
}
