package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Input is everything Load looks at.
type Input struct {
	Args    []string // after the command's name: FILE or --config FILE, and --key=value for every global setting
	Environ []string // NAME=value, as os.Environ gives it; PGBERTH_CONFIG names the file where Args do not
	Read    func(path string) ([]byte, error)
}

// envPrefix stands before the key, in capitals, of every setting given by the environment.
const envPrefix = "PGBERTH_"

// Load reads, lays the layers on top of each other and checks. It returns either a complete Config or Problems.
func Load(in Input) (*Config, error) {
	if in.Read == nil {
		in.Read = ReadFile
	}
	var ps Problems
	fromFlags, flags, file := readFlags(in.Args, &ps)
	fromEnv, named := readEnviron(in.Environ, &ps)
	if file == "" {
		file = named
	}
	d := dialectFor(file)
	doc, whole := readDocument(file, d, in.Read, &ps)

	c := &Config{file: file}
	b := builder{config: c, dialect: d, problems: &ps, bad: map[string]bool{}}
	b.settings(doc.settings, fromEnv, fromFlags, flags)
	b.entries(doc)
	b.userlist(in.Read)
	b.tls(in.Read)
	if whole { // else what is missing would be blamed
		b.relations()
	}
	return c.orProblems(ps)
}

func (c *Config) orProblems(ps Problems) (*Config, error) {
	if err := ps.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// readDocument takes in the file; whole is false when nothing of it could be read.
func readDocument(file string, d dialect, read func(string) ([]byte, error), ps *Problems) (doc document, whole bool) {
	if file == "" {
		return document{}, true
	}
	data, err := read(file)
	if err != nil {
		ps.add(Origin{}, "configuration file %s: %s", shown(file), reason(err))
		return document{}, false
	}
	if d == dialectINI {
		return parseINI(file, data, read, ps), true
	}
	return parseYAML(file, data, ps)
}

// reason is an error of the file system without the path, which the sentence around it already names.
func reason(err error) string {
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		return pathError.Err.Error()
	}
	return err.Error()
}

// readFlags finds the file and the settings among the arguments.
func readFlags(args []string, ps *Problems) (pairs []pair, flags *pflag.FlagSet, file string) {
	flags = newFlags()
	var known []string
	for i, arg := range args {
		if arg == "--" {
			known = append(known, args[i:]...)
			break
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		switch {
		case len(arg) > 1 && arg[0] == '-' && (arg[1] != '-' || flags.Lookup(name) == nil):
			name, _, _ = strings.Cut(arg, "=")
			hint := ""
			if near := nearest(strings.TrimLeft(name, "-"), append(keys(globals), "config")); near != "" {
				hint = fmt.Sprintf("; did you mean --%s?", near)
			}
			ps.add(Origin{Source: FromFlag, Name: name}, "unknown flag%s", hint)
		default:
			known = append(known, arg)
		}
	}
	if err := flags.Parse(known); err != nil {
		at := Origin{Source: FromFlag, Name: "flags"}
		if missing := (*pflag.ValueRequiredError)(nil); errors.As(err, &missing) {
			at.Name = "--" + missing.GetSpecifiedName()
		}
		ps.add(at, "the flag has no value; allowed: --key=value")
	}
	flags.Visit(func(f *pflag.Flag) {
		if f.Name != "config" {
			pairs = append(pairs, pair{key: f.Name, text: f.Value.String(), at: Origin{Source: FromFlag, Name: "--" + f.Name}})
		}
	})
	files := flags.Args()
	if f := flags.Lookup("config"); f.Changed {
		files = append(files, f.Value.String())
	}
	if len(files) > 1 {
		ps.add(Origin{}, "more than one configuration file: %s; allowed: one", strings.Join(files, ", "))
	}
	if len(files) > 0 {
		file = files[0]
	}
	return pairs, flags, file
}

// newFlags has a flag for every global setting. All are text, so that their values are judged like everybody's.
func newFlags() *pflag.FlagSet {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.String("config", "", "configuration file, YAML or pgbouncer.ini")
	for _, s := range globals {
		flags.String(s.key, s.def, s.doc)
	}
	return flags
}

// FlagUsages describes every flag, for --help.
func FlagUsages() string { return newFlags().FlagUsages() }

// serviceLink matches the variables Kubernetes sets for services whose names start with pgberth.
var serviceLink = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$`)

func readEnviron(environ []string, ps *Problems) (pairs []pair, file string) {
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		key, ours := strings.CutPrefix(name, envPrefix)
		if !ours {
			continue
		}
		at := Origin{Source: FromEnvironment, Name: name}
		if key == "CONFIG" {
			file = text
			continue
		}
		if _, ok := find(globals, strings.ToLower(key)); ok && key == strings.ToUpper(key) {
			pairs = append(pairs, pair{key: strings.ToLower(key), text: text, at: at})
			continue
		}
		if serviceLink.MatchString("_" + key) {
			continue
		}
		hint := ""
		if near := nearest(key, keys(globals)); near != "" {
			hint = fmt.Sprintf("; did you mean %s%s?", envPrefix, strings.ToUpper(near))
		}
		ps.add(at, "unknown variable%s", hint)
	}
	slices.SortStableFunc(pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	return pairs, file
}

// builder turns texts into the typed Config.
type builder struct {
	config   *Config
	dialect  dialect
	problems *Problems
	bad      map[string]bool // settings whose value was refused: their relations are not judged
}

// settings lays defaults, file, environment and flags on top of each other and parses what results.
func (b *builder) settings(fromFile, fromEnv, fromFlags []pair, flags *pflag.FlagSet) {
	b.config.origins = make(map[string]Origin, len(globals))
	v := viper.New()
	for _, s := range globals {
		v.SetDefault(s.key, s.initial(b.dialect))
		b.config.origins[s.key] = Origin{}
	}
	merge := func(layer map[string]any) {
		if err := v.MergeConfigMap(layer); err != nil {
			b.problems.add(Origin{}, "settings cannot be merged: %v", err)
		}
	}
	merge(b.layer(fromFile, b.dialect))
	merge(b.layer(fromEnv, dialectYAML))
	for key := range b.layer(fromFlags, dialectYAML) {
		if err := v.BindPFlag(key, flags.Lookup(key)); err != nil {
			b.problems.add(Origin{}, "settings cannot be merged: %v", err)
		}
	}
	for _, s := range globals {
		if b.bad[s.key] {
			continue
		}
		// Every layer judged its own text by its own dialect; what is left is one all of them accept.
		field := s.value(b.config)
		if text := v.GetString(s.key); text != "" || takesBlank(field) {
			assign(field, text, dialectYAML.of(s.limits))
		}
	}
}

// layer judges the settings of one source and returns those that hold.
func (b *builder) layer(pairs []pair, d dialect) map[string]any {
	layer := map[string]any{}
	for _, p := range pairs {
		s, ok := find(globals, p.key)
		if !ok {
			b.problems.add(p.at, "unknown setting %s%s", shown(p.key), suggestion(p.key, append(keys(globals), "databases", "users", "peers")))
			continue
		}
		scratch := reflect.New(s.value(new(Config)).Type()).Elem()
		if p.text == "" && !takesBlank(scratch) {
			continue
		}
		if !b.judge(s.key, p, scratch, d.of(s.limits)) {
			b.bad[s.key] = true
			continue
		}
		layer[p.key] = p.text
		b.config.origins[p.key] = p.at
	}
	return layer
}

// judge parses one text into dst or adds the sentence that refuses it.
func (b *builder) judge(label string, p pair, dst reflect.Value, l limits) bool {
	if p.list && dst.Kind() != reflect.Slice {
		b.problems.add(p.at, "%s is a list; allowed: a single value", label)
		return false
	}
	allowed := assign(dst, p.text, l)
	if allowed == "" {
		return true
	}
	b.problems.add(p.at, "%s is %s; allowed: %s", label, shown(p.text), allowed)
	return false
}

// entries fills databases, users and peers.
func (b *builder) entries(doc document) {
	c := b.config
	b.each("databases", doc.databases, maxDatabase, func(label string, e entry) {
		d := Database{Name: e.name, at: e.at}
		d.origins = fill(b, &d, perDatabase, label, e)
		c.Databases = append(c.Databases, d)
	})
	b.each("users", doc.users, maxUser, func(label string, e entry) {
		u := User{Name: e.name, at: e.at}
		u.origins = fill(b, &u, perUser, label, e)
		c.Users = append(c.Users, u)
	})
	b.each("peers", doc.peers, maxUser, func(label string, e entry) {
		p := Peer{Name: e.name, at: e.at}
		p.origins = fill(b, &p, perPeer, label, e)
		c.Peers = append(c.Peers, p)
	})
}

// each calls add for the entries whose name is good and new; label starts the problems of its settings.
func (b *builder) each(kind string, entries []entry, longest int, add func(label string, e entry)) {
	seen := map[string]int{}
	for _, e := range entries {
		line, twice := seen[e.name]
		switch {
		case e.name == "":
			b.problems.add(e.at, "%s: an item has no name; allowed: 1 to %d bytes", kind, longest)
		case strings.ContainsRune(e.name, 0):
			b.problems.add(e.at, "%s: name %s contains a NUL byte", kind, shown(e.name))
		case len(e.name) > longest:
			b.problems.add(e.at, "%s: name %s is %d bytes long; allowed: 1 to %d", kind, shown(e.name), len(e.name), longest)
		case twice:
			b.problems.add(e.at, "%s: name %s is given twice, first in line %d", kind, shown(e.name), line)
		default:
			seen[e.name] = e.at.Line
			add(fmt.Sprintf("%s %s: ", kind, shown(e.name)), e)
		}
	}
}

// fill sets the fields of one entry and tells where each given one came from. Blank means not given.
func fill[T any](b *builder, dst *T, table []setting[T], label string, e entry) map[string]Origin {
	origins := map[string]Origin{}
	for _, s := range table {
		if s.def != "" {
			assign(s.value(dst), s.def, s.limits)
		}
	}
	for _, p := range e.pairs {
		key := p.key
		if alias, ok := aliases[key]; ok {
			key = alias
		}
		s, ok := find(table, key)
		if !ok {
			b.problems.add(p.at, "%sunknown setting %s%s", label, shownKey(p.key), suggestion(p.key, append(keys(table), "name")))
			continue
		}
		if p.text != "" && b.judge(label+key, p, s.value(dst), b.dialect.of(s.limits)) {
			origins[key] = p.at
		}
	}
	return origins
}

// userlist reads auth_file.
func (b *builder) userlist(read func(string) ([]byte, error)) {
	file := b.config.Auth.File
	if file == "" || b.bad["auth_file"] {
		return
	}
	data, err := read(file)
	if err != nil {
		b.problems.add(b.config.origins["auth_file"], "auth_file is %s: %s", shown(file), reason(err))
		return
	}
	if b.config.Userlist, err = ParseUserlist(data); err != nil {
		b.problems.add(b.config.origins["auth_file"], "auth_file is %s: %s", shown(file), err)
	}
}
