package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Source is a layer a value can come from; a later one wins.
type Source uint8

const (
	FromDefault Source = iota
	FromFile
	FromEnvironment
	FromFlag
)

// Origin tells where a value came from.
type Origin struct {
	Source Source
	Name   string // file, environment variable or flag
	Line   int    // in a file
	order  int    // of the file among those read: an included file comes after the including one
}

func (o Origin) String() string {
	switch {
	case o.Source == FromDefault:
		return "default"
	case o.Line > 0:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	}
	return o.Name
}

// Problem is one thing wrong with a configuration, as a sentence.
type Problem struct {
	Where Origin // FromDefault when the problem has no single place
	Text  string
}

func (p Problem) String() string {
	if p.Where.Source == FromDefault {
		return p.Text
	}
	return p.Where.String() + ": " + p.Text
}

// Problems is everything wrong with a configuration, in the order of the file, then environment, then flags. It is the
// error of Load, so that an operator repairs all in one go.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps *Problems) add(where Origin, format string, args ...any) {
	*ps = append(*ps, Problem{where, fmt.Sprintf(format, args...)})
}

// err returns the problems in their order, nil when there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	// Problems without a place concern the whole and come last.
	rank := func(s Source) int { return (int(s) + 3) % 4 }
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank(a.Where.Source), rank(b.Where.Source)),
			cmp.Compare(a.Where.order, b.Where.order), cmp.Compare(a.Where.Line, b.Where.Line))
	})
	return ps
}

// shown bounds what is quoted of a bad value.
func shown(text string) string {
	const most = 60
	if len(text) > most {
		return fmt.Sprintf("%.*q…", most, text)
	}
	return fmt.Sprintf("%q", text)
}

// shownKey quotes the key of a connection string, if it looks like one: it may be the rest of a password with a blank.
func shownKey(key string) string {
	if strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "of no known form"
	}
	return shown(key)
}

// suggestion ends a sentence about an unknown name.
func suggestion(name string, known []string) string {
	if near := nearest(name, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest is the known name that was probably meant, "" when none is near.
func nearest(name string, known []string) string {
	if len(name) > 64 {
		return ""
	}
	best, distance := "", 1+max(2, len(name)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(name), k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the letters to insert, drop or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

func keys[T any](table []setting[T]) []string {
	names := make([]string, len(table))
	for i, s := range table {
		names[i] = s.key
	}
	return names
}
