package session

import (
	"slices"
	"sort"
	"strings"
	"unique"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// Tracked is the set of run-time parameters that are kept per client: the ones that every server reports, and those the
// operator adds. Names compare without case, as in PostgreSQL.
type Tracked struct {
	names []string // canonical spelling, sorted by lower case
}

// AlwaysTracked are the parameters that PgBouncer tracks with no setting. Source: PgBouncer's documentation.
var AlwaysTracked = []string{"client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name"}

// NewTracked makes the set of AlwaysTracked and extra.
func NewTracked(extra []string) *Tracked {
	t := &Tracked{}
	for _, n := range append(append([]string(nil), AlwaysTracked...), extra...) {
		if _, ok := t.Canonical(n); !ok && n != "" {
			t.names = append(t.names, n)
			sort.Slice(t.names, func(i, j int) bool { return strings.ToLower(t.names[i]) < strings.ToLower(t.names[j]) })
		}
	}
	return t
}

// Canonical gives the spelling of a tracked name, and whether it is tracked.
func (t *Tracked) Canonical(name string) (string, bool) {
	for _, n := range t.names {
		if strings.EqualFold(n, name) {
			return n, true
		}
	}
	return "", false
}

// Params is an immutable set of parameters and their values. Equal sets are equal in ==, and an idle client's set costs
// one pointer however many share it.
type Params struct {
	set unique.Handle[string] // name NUL value NUL …, sorted by name
}

// MakeParams builds a set; of a name given twice the last value counts.
func MakeParams(list []pgwire.Parameter) Params {
	return Params{}.overlaid(list)
}

func (p Params) encoded() string {
	if p == (Params{}) {
		return ""
	}
	return p.set.Value()
}

// All lists the set in order of name.
func (p Params) All() []pgwire.Parameter {
	var list []pgwire.Parameter
	for s := p.encoded(); s != ""; {
		name, rest, _ := strings.Cut(s, "\x00")
		value, rest, _ := strings.Cut(rest, "\x00")
		list = append(list, pgwire.Parameter{Name: name, Value: value})
		s = rest
	}
	return list
}

// Get finds a value by its exact name.
func (p Params) Get(name string) (string, bool) {
	for s := p.encoded(); s != ""; {
		n, rest, _ := strings.Cut(s, "\x00")
		v, rest, _ := strings.Cut(rest, "\x00")
		if n == name {
			return v, true
		}
		s = rest
	}
	return "", false
}

// With returns the set with one value changed or added. NUL cannot occur: it ends strings on the wire.
func (p Params) With(name, value string) Params {
	return p.overlaid([]pgwire.Parameter{{Name: name, Value: value}})
}

// Over returns p with every value of top laid over it.
func (p Params) Over(top Params) Params { return p.overlaid(top.All()) }

// overlaid returns p with the values of top, the last of each name. The set is made once: that is the costly part.
func (p Params) overlaid(top []pgwire.Parameter) Params {
	list := p.All()
	changed := false
	for _, kv := range top {
		i, found := slices.BinarySearchFunc(list, kv.Name, func(e pgwire.Parameter, name string) int { return strings.Compare(e.Name, name) })
		switch {
		case !found:
			list = slices.Insert(list, i, kv)
		case list[i].Value != kv.Value:
			list[i].Value = kv.Value
		default:
			continue
		}
		changed = true
	}
	if !changed {
		return p
	}
	size := 0
	for _, kv := range list {
		size += len(kv.Name) + len(kv.Value) + 2
	}
	var b strings.Builder
	b.Grow(size)
	for _, kv := range list {
		b.WriteString(kv.Name)
		b.WriteByte(0)
		b.WriteString(kv.Value)
		b.WriteByte(0)
	}
	return Params{unique.Make(b.String())}
}

// Missing lists what want has and p has not, or otherwise.
func (p Params) Missing(want Params) []pgwire.Parameter {
	if p == want {
		return nil
	}
	var list []pgwire.Parameter
	for _, kv := range want.All() {
		if have, ok := p.Get(kv.Name); !ok || have != kv.Value {
			list = append(list, kv)
		}
	}
	return list
}

// Surplus lists the names that p has and want has not.
func (p Params) Surplus(want Params) []string {
	if p == want {
		return nil
	}
	var names []string
	for _, kv := range p.All() {
		if _, ok := want.Get(kv.Name); !ok {
			names = append(names, kv.Name)
		}
	}
	return names
}

// Without returns the set without some names.
func (p Params) Without(names []string) Params {
	if len(names) == 0 {
		return p
	}
	return MakeParams(slices.DeleteFunc(p.All(), func(kv pgwire.Parameter) bool { return slices.Contains(names, kv.Name) }))
}

// ASCII tells whether every value is the same in any encoding.
func (p Params) ASCII() bool { return ASCII(p.encoded()) }

// ASCII tells whether a text is the same in any encoding.
func ASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// Planned returns the parameters that may change what a text means or how it is planned.
func (p Params) Planned() Params {
	var without []string
	for _, kv := range p.All() {
		n := strings.ToLower(kv.Name)
		if Custom(n) || n == "application_name" || n == "role" || n == "client_min_messages" || strings.HasSuffix(n, "_timeout") ||
			strings.HasPrefix(n, "default_transaction_") || strings.HasPrefix(n, "log_") || strings.HasPrefix(n, "tcp_") {
			without = append(without, kv.Name)
		}
	}
	return p.Without(without)
}

// ResetStatements renders SQL that takes parameters back to what a new session begins with.
func ResetStatements(names []string) string {
	var b strings.Builder
	for _, name := range names {
		b.WriteString("RESET ")
		b.WriteString(quoteIdent(name))
		b.WriteByte(';')
	}
	return b.String()
}

// SetStatements renders SQL that sets the parameters: values are quoted as literals whatever they contain.
func SetStatements(list []pgwire.Parameter) string {
	var b strings.Builder
	for _, kv := range list {
		if listsNames(kv.Name) {
			// SET would take the whole value for one name.
			b.WriteString("SELECT pg_catalog.set_config(")
			b.WriteString(quoteLiteral(kv.Name))
			b.WriteString(", ")
			b.WriteString(quoteLiteral(kv.Value))
			b.WriteString(", false);")
			continue
		}
		b.WriteString("SET ")
		b.WriteString(quoteIdent(kv.Name))
		b.WriteString(" TO ")
		b.WriteString(quoteLiteral(kv.Value))
		b.WriteByte(';')
	}
	return b.String()
}

// listsNames tells which parameters are lists of names, each quoted by itself. Source: variable_is_guc_list_quote in
// PostgreSQL's dumputils.c, without those that a session cannot set.
func listsNames(parameter string) bool {
	return slices.ContainsFunc([]string{"search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"},
		func(name string) bool { return strings.EqualFold(name, parameter) })
}

func quoteIdent(name string) string {
	// Dotted names are two identifiers.
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = `"` + strings.ReplaceAll(p, `"`, `""`) + `"`
	}
	return strings.Join(parts, ".")
}

// Quote renders a text as a literal of SQL.
func Quote(v string) string { return quoteLiteral(v) }

// Size is what the set takes, in bytes.
func (p Params) Size() int { return len(p.encoded()) }

// quoteLiteral is right whatever standard_conforming_strings says: a value with a backslash becomes an escape string.
func quoteLiteral(v string) string {
	q := "'" + strings.ReplaceAll(v, "'", "''") + "'"
	if strings.Contains(v, `\`) {
		return "E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}
