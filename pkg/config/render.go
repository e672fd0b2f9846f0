package config

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Render writes the effective settings, one a line, with where each came from; secrets are masked.
func (c *Config) Render(w io.Writer) error {
	var p page
	for _, s := range globals {
		p.row(s.key, format(s.value(c)), c.origins[s.key], s.is(inert))
	}
	for i := range c.Databases {
		d := &c.Databases[i]
		renderEntry(&p, fmt.Sprintf("databases %q", d.Name), d, perDatabase, d.at, d.origins)
	}
	for i := range c.Users {
		u := &c.Users[i]
		renderEntry(&p, fmt.Sprintf("users %q", u.Name), u, perUser, u.at, u.origins)
	}
	for i := range c.Peers {
		q := &c.Peers[i]
		renderEntry(&p, fmt.Sprintf("peers %q", q.Name), q, perPeer, q.at, q.origins)
	}
	_, err := w.Write(p.Bytes())
	return err
}

// page is what Render writes. Its columns are fixed: one long value shall not push all origins out of sight.
type page struct{ bytes.Buffer }

const (
	keyWidth   = 30
	valueWidth = 30
)

func renderEntry[T any](p *page, label string, e *T, table []setting[T], at Origin, origins map[string]Origin) {
	fmt.Fprintf(p, "\n%-*s %s\n", keyWidth+1+valueWidth, label, at)
	for _, s := range table {
		if text := format(s.value(e)); text != "" {
			p.row("  "+s.key, text, origins[s.key], s.is(inert))
		}
	}
}

func (p *page) row(key, text string, o Origin, isInert bool) {
	if text == "" {
		text = "(blank)"
	}
	// A value may hold anything, also what would forge lines.
	if strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	fmt.Fprintf(p, "%-*s %-*s %s", keyWidth, key, valueWidth, text, o)
	if isInert && o.Source != FromDefault {
		p.WriteString(" (no effect yet)")
	}
	p.WriteByte('\n')
}

// Inert lists the settings that were given but have no effect in this version, sorted; those of an entry follow its kind.
func (c *Config) Inert() []string {
	var list []string
	for _, s := range globals {
		if s.is(inert) && c.origins[s.key].Source != FromDefault {
			list = append(list, s.key)
		}
	}
	for _, d := range c.Databases {
		list = append(list, inertOf("databases", perDatabase, d.origins)...)
	}
	for _, u := range c.Users {
		list = append(list, inertOf("users", perUser, u.origins)...)
	}
	for _, p := range c.Peers {
		list = append(list, inertOf("peers", perPeer, p.origins)...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func inertOf[T any](kind string, table []setting[T], origins map[string]Origin) []string {
	var list []string
	for _, s := range table {
		if _, given := origins[s.key]; given && s.is(inert) {
			list = append(list, kind+"."+s.key)
		}
	}
	return list
}
