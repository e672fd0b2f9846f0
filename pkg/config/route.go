package config

import "time"

// Reserved is the database name of the admin console; no entry may take it and the template does not match it.
const Reserved = "pgbouncer"

// Route is everything that holds for one (database, user) once user, database and global settings are resolved.
type Route struct {
	Database string // as the client asked for it; with User the identity of the pool
	User     string // the user the server sees: the entry's forced user, else the client's
	Entry    *Database

	Hosts    []string // never empty; an absolute path is a Unix socket directory
	Port     int      // of the first host
	Ports    []int    // one for each host where they differ, else nil
	DBName   string
	Password Secret // User's: the entry's, else from auth_file, where it may be an md5 hash or a SCRAM verifier

	Mode           PoolMode
	Size           int // 0 = unlimited
	MinSize        int // never above Size
	ReserveSize    int
	ServerLifetime time.Duration
	ResetQuery     string // "" when none runs in this mode
	QueryWait      time.Duration

	Query           time.Duration // timeouts of clients: 0 = never
	IdleTransaction time.Duration
	Transaction     time.Duration
	ClientIdle      time.Duration

	MaxDatabaseServers int // limits: 0 = unlimited
	MaxDatabaseClients int
	MaxUserServers     int // of User
	MaxUserClients     int // of the user who logged in, whose timeouts of clients hold too
}

// Database finds the entry for a name a client asked for; the template "*" serves names without one.
func (c *Config) Database(name string) (*Database, bool) {
	if name == "" || name == Reserved {
		return nil, false
	}
	var template *Database
	for i := range c.Databases {
		switch d := &c.Databases[i]; d.Name {
		case name:
			if name != "*" {
				return d, true
			}
		case "*":
			template = d
		}
	}
	return template, template != nil && name != "*"
}

// User finds the entry of a user.
func (c *Config) User(name string) (*User, bool) {
	for i := range c.Users {
		if c.Users[i].Name == name {
			return &c.Users[i], true
		}
	}
	return nil, false
}

// Route resolves what holds for a client that logged in as user to database; ok is false for an unknown database.
// Precedence is PgBouncer's: user, then database, then global. Where the entry forces a user, the pool belongs to that
// one, and so do pool mode, sizes, queue and server limit, so that all who share a pool agree on it; a client's own
// timeouts and client limit stay those of its login.
func (c *Config) Route(database, user string) (r Route, ok bool) {
	return c.route(database, user, true)
}

// route is Route; unless forced, the user stays the one given whomever the entry forces.
func (c *Config) route(database, user string, forced bool) (r Route, ok bool) {
	d, ok := c.Database(database)
	if !ok {
		return Route{}, false
	}
	login, _ := c.User(user)
	if login == nil {
		login = &User{}
	}
	owner := login
	r = Route{Database: database, User: user, Entry: d, Hosts: d.Hosts, Port: d.Ports[0], DBName: d.DBName}
	if len(d.Ports) > 1 {
		r.Ports = d.Ports
	}
	if d.User != "" && (forced || d.User == user) {
		r.User, r.Password = d.User, d.Password
		if owner, _ = c.User(d.User); owner == nil {
			owner = &User{}
		}
	}
	if !r.Password.Set() {
		r.Password = c.Userlist[r.User]
	}
	if len(r.Hosts) == 0 {
		r.Hosts = []string{c.Listen.SocketDir}
	}
	if r.DBName == "" {
		r.DBName = database
	}

	r.Mode = first(c.Pool.Mode, owner.PoolMode, d.PoolMode)
	r.Size = first(c.Pool.Size, owner.PoolSize, d.PoolSize)
	r.MinSize = first(c.Pool.MinSize, d.MinPoolSize)
	if r.Size > 0 {
		r.MinSize = min(r.MinSize, r.Size)
	}
	r.ReserveSize = first(c.Pool.ReserveSize, owner.ReservePoolSize, d.ReservePoolSize)
	r.ServerLifetime = first(c.Server.Lifetime, d.ServerLifetime)
	if r.Mode == ModeSession || c.Server.ResetAlways {
		r.ResetQuery = c.Server.ResetQuery
	}
	r.QueryWait = first(c.Timeouts.QueryWait, owner.QueryWait, d.QueryWait)
	r.Query = first(c.Timeouts.Query, login.Query)
	r.IdleTransaction = first(c.Timeouts.IdleTransaction, login.IdleTransaction)
	r.Transaction = first(c.Timeouts.Transaction, login.Transaction)
	r.ClientIdle = first(c.Timeouts.ClientIdle, login.ClientIdle)

	r.MaxDatabaseServers = first(c.Limits.DatabaseServers, d.MaxServers)
	r.MaxDatabaseClients = first(c.Limits.DatabaseClients, d.MaxClients)
	r.MaxUserServers = first(c.Limits.UserServers, owner.MaxServers)
	r.MaxUserClients = first(c.Limits.UserClients, login.MaxClients)
	return r, true
}

// first returns the first override that is given, else the global value.
func first[T any](global T, overrides ...*T) T {
	for _, o := range overrides {
		if o != nil {
			return *o
		}
	}
	return global
}
