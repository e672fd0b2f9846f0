package config

// serverPort is 1..65535: a server cannot be reached on port 0.
var serverPort = limits{lo: 1, hi: 65535}

// perDatabase are the settings of an entry of databases.
var perDatabase = []setting[Database]{
	{key: "host", field: func(d *Database) any { return &d.Hosts }, doc: "server, or several separated by commas; blank is the Unix socket"},
	{key: "port", def: "5432", limits: serverPort, field: func(d *Database) any { return &d.Ports }, doc: "server port, or one for each host separated by commas"},
	{key: "dbname", field: func(d *Database) any { return &d.DBName }, doc: "name on the server; blank is the name asked for"},
	{key: "user", field: func(d *Database) any { return &d.User }, doc: "user on the server for all clients; blank is the client's"},
	{key: "password", field: func(d *Database) any { return &d.Password }, doc: "that user's password"},
	{key: "pool_mode", field: func(d *Database) any { return &d.PoolMode }, doc: "instead of pool_mode"},
	{key: "pool_size", field: func(d *Database) any { return &d.PoolSize }, doc: "instead of default_pool_size"},
	{key: "min_pool_size", field: func(d *Database) any { return &d.MinPoolSize }, doc: "instead of min_pool_size"},
	{key: "reserve_pool_size", field: func(d *Database) any { return &d.ReservePoolSize }, doc: "instead of reserve_pool_size"},
	{key: "max_db_connections", field: func(d *Database) any { return &d.MaxServers }, doc: "instead of max_db_connections"},
	{key: "max_db_client_connections", field: func(d *Database) any { return &d.MaxClients }, doc: "instead of max_db_client_connections"},
	{key: "server_lifetime", field: func(d *Database) any { return &d.ServerLifetime }, doc: "instead of server_lifetime"},
	{key: "query_wait_timeout", field: func(d *Database) any { return &d.QueryWait }, doc: "instead of query_wait_timeout"},
	{key: "load_balance_hosts", def: "round-robin", field: func(d *Database) any { return &d.LoadBalance }, doc: "several hosts: each new connection to the next one (round-robin), or to the one that worked last (disable)"},
	{key: "target_session_attrs", def: "any", field: func(d *Database) any { return &d.TargetSession }, doc: "what a server must be: any, read-write, read-only, primary, standby, prefer-standby"},
	{key: "connect_query", field: func(d *Database) any { return &d.ConnectQuery }, doc: "run on every new server connection"},
	{key: "client_encoding", field: func(d *Database) any { return &d.ClientEncoding }, doc: "set on every new server connection"},
	{key: "datestyle", field: func(d *Database) any { return &d.DateStyle }, doc: "set on every new server connection"},
	{key: "timezone", field: func(d *Database) any { return &d.TimeZone }, doc: "set on every new server connection"},
	{key: "application_name", field: func(d *Database) any { return &d.ApplicationName }, doc: "set on every new server connection"},
	{key: "auth_user", field: func(d *Database) any { return &d.AuthUser }, doc: "instead of auth_user"},
	{key: "auth_query", field: func(d *Database) any { return &d.AuthQuery }, doc: "instead of auth_query"},
	{key: "auth_dbname", field: func(d *Database) any { return &d.AuthDBName }, doc: "instead of auth_dbname"},
}

// aliases are older names PgBouncer still takes in connection strings.
var aliases = map[string]string{"reserve_pool": "reserve_pool_size"}

// perUser are the settings of an entry of users.
var perUser = []setting[User]{
	{key: "pool_mode", field: func(u *User) any { return &u.PoolMode }, doc: "instead of pool_mode"},
	{key: "pool_size", field: func(u *User) any { return &u.PoolSize }, doc: "instead of default_pool_size"},
	{key: "reserve_pool_size", field: func(u *User) any { return &u.ReservePoolSize }, doc: "instead of reserve_pool_size"},
	{key: "max_user_connections", field: func(u *User) any { return &u.MaxServers }, doc: "instead of max_user_connections"},
	{key: "max_user_client_connections", field: func(u *User) any { return &u.MaxClients }, doc: "instead of max_user_client_connections"},
	{key: "query_wait_timeout", field: func(u *User) any { return &u.QueryWait }, doc: "instead of query_wait_timeout"},
	{key: "query_timeout", field: func(u *User) any { return &u.Query }, doc: "instead of query_timeout"},
	{key: "idle_transaction_timeout", field: func(u *User) any { return &u.IdleTransaction }, doc: "instead of idle_transaction_timeout"},
	{key: "transaction_timeout", field: func(u *User) any { return &u.Transaction }, doc: "instead of transaction_timeout"},
	{key: "client_idle_timeout", field: func(u *User) any { return &u.ClientIdle }, doc: "instead of client_idle_timeout"},
}

// perPeer are the settings of an entry of peers.
var perPeer = []setting[Peer]{
	{key: "host", traits: inert, field: func(p *Peer) any { return &p.Host }, doc: "the peer's address"},
	{key: "port", def: "6432", traits: inert, limits: serverPort, field: func(p *Peer) any { return &p.Port }, doc: "the peer's port"},
	{key: "pool_size", traits: inert, field: func(p *Peer) any { return &p.PoolSize }, doc: "connections to the peer at once"},
}
