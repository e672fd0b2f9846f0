package config

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// maxIncludes bounds how deep %include nests; maxFiles how many files take part, which a chain of doublings would not.
const (
	maxIncludes = 16
	maxFiles    = 1000
)

// iniParser reads pgbouncer.ini and what it includes. A section stays open across files, as in PgBouncer.
type iniParser struct {
	read     func(string) ([]byte, error)
	ps       *Problems
	doc      document
	section  string // "" before the first, unknownSection after an unknown one
	required bool   // [pgbouncer] was seen
	open     []string
	files    int
	seen     map[[2]string]int // section and name of an entry: its index
}

const unknownSection = "?"

// Characters isspace and isblank know in the C locale.
const (
	spaces = " \t\n\v\f\r"
	blanks = " \t"
)

func parseINI(file string, data []byte, read func(string) ([]byte, error), ps *Problems) document {
	p := iniParser{read: read, ps: ps, seen: map[[2]string]int{}}
	p.file(file, data)
	if !p.required {
		ps.add(Origin{Source: FromFile, Name: file}, "section [pgbouncer] is missing; allowed: the sections [pgbouncer], [databases], [users], [peers], the first required")
	}
	return p.doc
}

func (p *iniParser) file(name string, data []byte) {
	p.open = append(p.open, filepath.Clean(name))
	order := p.files
	p.files++
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for i, line := range bytes.Split(data, []byte("\n")) {
		p.line(string(line), Origin{Source: FromFile, Name: name, Line: i + 1, order: order})
	}
	p.open = p.open[:len(p.open)-1]
}

// line reads one line: a comment, an include, or sections followed by at most one key = value. Problems never quote it,
// for a line that cannot be read may hold a password.
func (p *iniParser) line(line string, at Origin) {
	if strings.ContainsRune(line, 0) {
		p.ps.add(at, "the line contains a NUL byte")
		return
	}
	for {
		line = strings.Trim(line, spaces)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			return
		case strings.HasPrefix(line, "%include ") || strings.HasPrefix(line, "%include\t"):
			p.include(strings.Trim(line[len("%include"):], spaces), at)
			return
		case line[0] == '[':
			name, rest, ok := strings.Cut(line[1:], "]")
			if !ok {
				p.ps.add(at, "a section has no closing bracket; allowed: [pgbouncer], [databases], [users], [peers]")
				return
			}
			p.enter(name, at)
			line = rest
		default:
			key, rest, ok := iniKey(line)
			rest, equals := strings.CutPrefix(strings.TrimLeft(rest, blanks), "=")
			if !ok || !equals {
				p.ps.add(at, "the line is neither [section], key = value, %%include file nor a comment")
				return
			}
			p.pair(pair{key: key, text: strings.TrimLeft(rest, blanks), at: at})
			return
		}
	}
}

// iniKey takes a key off the front of a line; quotes, in which doubled ones count as one, admit any character.
func iniKey(line string) (key, rest string, ok bool) {
	if q := line[0]; q == '\'' || q == '"' {
		return unquote(line[1:], q)
	}
	n := 0
	for n < len(line) && (line[n]|0x20 >= 'a' && line[n]|0x20 <= 'z' || line[n] >= '0' && line[n] <= '9' || strings.IndexByte("_.-*", line[n]) >= 0) {
		n++
	}
	return line[:n], line[n:], n > 0
}

// unquote reads up to the closing quote q; a doubled one stands for itself.
func unquote(text string, q byte) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == q {
			if i+1 >= len(text) || text[i+1] != q {
				return b.String(), text[i+1:], true
			}
			i++
		}
		b.WriteByte(text[i])
	}
	return "", "", false
}

func (p *iniParser) enter(name string, at Origin) {
	switch name {
	case "pgbouncer":
		p.required = true
	case "databases", "users", "peers":
	default:
		p.ps.add(at, "unknown section %s%s", shown(name), suggestion(name, []string{"pgbouncer", "databases", "users", "peers"}))
		name = unknownSection
	}
	p.section = name
}

func (p *iniParser) pair(v pair) {
	switch p.section {
	case "":
		p.ps.add(v.at, "key %s stands before any section; allowed after [pgbouncer], [databases], [users] or [peers]", shown(v.key))
	case "pgbouncer":
		p.doc.settings = append(p.doc.settings, v)
	case "databases":
		p.entry(&p.doc.databases, v)
	case "users":
		p.entry(&p.doc.users, v)
	case "peers":
		p.entry(&p.doc.peers, v)
	}
}

// entry adds an item; a later one of the same name replaces the earlier one whole.
func (p *iniParser) entry(list *[]entry, v pair) {
	pairs, err := parseConnString(v.text)
	if err != nil {
		p.ps.add(v.at, "%s %s: %s", p.section, shown(v.key), err)
		return
	}
	for i := range pairs {
		pairs[i].at = v.at
	}
	e := entry{name: v.key, at: v.at, pairs: pairs}
	id := [2]string{p.section, e.name}
	if i, again := p.seen[id]; again {
		(*list)[i] = e
		return
	}
	p.seen[id] = len(*list)
	*list = append(*list, e)
}

// include reads another file; its path is relative to the working directory, as in PgBouncer.
func (p *iniParser) include(path string, at Origin) {
	switch {
	case slices.Contains(p.open, filepath.Clean(path)):
		p.ps.add(at, "%%include %s includes itself", shown(path))
		return
	case len(p.open) >= maxIncludes || p.files >= maxFiles:
		p.ps.add(at, "%%include %s goes too deep; allowed: %d levels and %d files", shown(path), maxIncludes, maxFiles)
		return
	}
	data, err := p.read(path)
	if err != nil {
		p.ps.add(at, "%%include %s: %s", shown(path), reason(err))
		return
	}
	p.file(path, data)
}

// parseConnString reads the value of an entry: key=value, blank-separated, values quoted by ' where they hold blanks.
func parseConnString(text string) ([]pair, error) {
	var pairs []pair
	for {
		text = strings.TrimLeft(text, blanks)
		if text == "" {
			return pairs, nil
		}
		end := strings.IndexAny(text, "="+blanks)
		if end <= 0 || !strings.HasPrefix(strings.TrimLeft(text[end:], blanks), "=") {
			return nil, fmt.Errorf("setting %d is not key=value", len(pairs)+1)
		}
		key := text[:end]
		text = strings.TrimLeft(strings.TrimLeft(text[end:], blanks)[1:], blanks)
		var value string
		if quoted, ok := strings.CutPrefix(text, "'"); ok {
			if value, text, ok = unquote(quoted, '\''); !ok {
				return nil, fmt.Errorf("the value of %s has no closing quote", shownKey(key))
			}
			if text != "" && strings.IndexByte(blanks, text[0]) < 0 {
				return nil, fmt.Errorf("the value of %s goes on after its closing quote", shownKey(key))
			}
		} else {
			end := strings.IndexAny(text, blanks)
			if end < 0 {
				end = len(text)
			}
			value, text = text[:end], text[end:]
		}
		if value == "" {
			return nil, fmt.Errorf("the value of %s is empty", shownKey(key))
		}
		pairs = append(pairs, pair{key: key, text: value})
	}
}
