package config

import (
	"fmt"
	"strings"
)

// Lookup is how the secret of a user who is not in auth_file is found.
type Lookup struct {
	Route Route // of auth_user's pool
	Query string
}

// Lookup resolves what holds for a login to database: the entry's own auth_user, auth_query and auth_dbname before the
// global ones. ok is false when nobody is looked up there.
func (c *Config) Lookup(database string) (l Lookup, ok bool) {
	d, ok := c.Database(database)
	if !ok {
		return Lookup{}, false
	}
	user, query, name := c.lookup(d)
	if user == "" || query == "" {
		return Lookup{}, false
	}
	if name == "" {
		name = database
	}
	l.Query = query
	l.Route, ok = c.AuthRoute(name, user)
	return l, ok
}

func (c *Config) lookup(d *Database) (user, query, database string) {
	user, query, database = c.Auth.User, c.Auth.Query, c.Auth.DBName
	if d.AuthUser != "" {
		user = d.AuthUser
	}
	if d.AuthQuery != "" {
		query = d.AuthQuery
	}
	if d.AuthDBName != "" {
		database = d.AuthDBName
	}
	return user, query, database
}

// AuthRoute is Route for auth_user, who is not replaced by a user that the entry forces.
func (c *Config) AuthRoute(database, user string) (Route, bool) {
	return c.route(database, user, false)
}

// looksUp tells whether any database has users looked up.
func (b *builder) looksUp() bool {
	if b.config.Auth.User != "" {
		return true
	}
	for _, d := range b.config.Databases {
		if d.AuthUser != "" {
			return true
		}
	}
	return false
}

// lookups judges auth_user, auth_query and auth_dbname.
func (b *builder) lookups() {
	c := b.config
	a := &c.Auth
	global := func(key string) (string, Origin, bool) { return key, c.origins[key], b.bad[key] }
	if !b.looksUp() {
		for _, key := range []string{"auth_query", "auth_dbname"} {
			if c.origins[key].Source != FromDefault && !b.bad[key] && !b.bad["auth_user"] {
				b.note("%s has no effect without auth_user", key)
			}
		}
	} else {
		b.lookupText(a.User, a.Query, a.DBName, global)
	}
	for _, d := range c.Databases {
		if a.User != "" || d.AuthUser != "" || b.bad["auth_user"] {
			continue
		}
		for _, key := range []string{"auth_query", "auth_dbname"} {
			if at, given := d.origins[key]; given {
				b.pointless(key, at, "databases "+shown(d.Name)+": ")
			}
		}
	}
	for _, d := range c.Databases {
		b.lookupText(d.AuthUser, d.AuthQuery, d.AuthDBName, func(key string) (string, Origin, bool) {
			return "databases " + shown(d.Name) + ": " + key, d.origins[key], false
		})
	}
	if !b.looksUp() {
		return
	}
	if a.Type == AuthAny || a.Type == AuthPassthrough {
		b.note("auth_user has no effect with auth_type %s", a.Type)
		return
	}
	b.lookupSecrets()
}

// lookupText judges one set of the three.
func (b *builder) lookupText(user, query, database string, of func(key string) (label string, at Origin, bad bool)) {
	add := func(key, format string, args ...any) {
		if label, at, bad := of(key); !bad {
			b.problems.add(at, "%s is %s", label, fmt.Sprintf(format, args...))
		}
	}
	if query != "" && !strings.Contains(query, "$1") {
		add("auth_query", "%s; allowed: a query with $1, the user's name", shown(query))
	}
	if len(user) > maxUser {
		add("auth_user", "%s, which is %d bytes long; allowed: at most %d", shown(user), len(user), maxUser)
	}
	if database == "" || len(b.config.Databases) == 0 {
		return
	}
	if database == Reserved {
		add("auth_dbname", "%s, which is reserved for the console; allowed: an entry of databases", shown(database))
	} else if _, ok := b.config.Database(database); !ok {
		add("auth_dbname", "%s, which databases has no entry for; allowed: one of its names", shown(database))
	}
}

// pointless says that an entry has a setting that nothing can come of. PgBouncer does not mind.
func (b *builder) pointless(key string, at Origin, label string) {
	if b.dialect == dialectYAML {
		b.problems.add(at, "%s%s is given but auth_user is blank; allowed: an auth_user who runs the query, or neither", label, key)
	} else {
		b.note("%s%s has no effect without auth_user", label, key)
	}
}

// lookupSecrets notes users who have nothing to log in with.
func (b *builder) lookupSecrets() {
	c := b.config
	told := map[string]bool{}
	for i := range c.Databases {
		d := &c.Databases[i]
		l, ok := c.Lookup(d.Name)
		if d.Name == "*" {
			user, _, _ := c.lookup(d)
			l, ok = Lookup{Route: Route{User: user, Password: c.Userlist[user]}}, user != ""
		}
		user := l.Route.User
		if !ok || told[user] {
			continue
		}
		told[user] = true
		switch secret := l.Route.Password.Reveal(); {
		case secret == "":
			b.note("auth_user %s is not in auth_file, so its server must let it in without a password", shown(user))
		case strings.HasPrefix(secret, "SCRAM-SHA-256$"):
			b.note("auth_user %s has a SCRAM verifier in auth_file, which cannot log in to a server; allowed: its password or md5 hash", shown(user))
		}
	}
}
