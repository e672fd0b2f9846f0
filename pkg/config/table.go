package config

import (
	"reflect"
	"time"
)

// trait marks what is special about a setting.
type trait uint8

const (
	fixed trait = 1 << iota // read once at start; a later change needs a restart
	inert                   // known and checked, without effect in this version
)

// blank is the default of PgBouncer where it is nothing and ours is something.
const blank = "\x00"

// setting is a row of the tables below, which drive defaults, flags, environment, checks, rendering and comparison.
type setting[T any] struct {
	key    string
	def    string // default
	ini    string // default of a pgbouncer.ini where it differs
	field  func(*T) any
	traits trait
	limits limits
	doc    string
}

func (s setting[T]) value(of *T) reflect.Value { return reflect.ValueOf(s.field(of)).Elem() }

func (s setting[T]) is(t trait) bool { return s.traits&t != 0 }

func (s setting[T]) initial(d dialect) string {
	switch {
	case d != dialectINI || s.ini == "":
		return s.def
	case s.ini == blank:
		return ""
	}
	return s.ini
}

func find[T any](table []setting[T], key string) (setting[T], bool) {
	for _, s := range table {
		if s.key == key {
			return s, true
		}
	}
	return setting[T]{}, false
}

var (
	port     = limits{lo: 0, hi: 65535}
	positive = limits{lo: 1}
	seconds  = limits{whole: true}
	millis   = limits{whole: true, unit: time.Millisecond}
)

// defaultAuthQuery is PgBouncer's: the secret of a role that may log in, none when it has expired.
const defaultAuthQuery = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin"

// globals are the settings of the whole process.
var globals = []setting[Config]{
	// Listening
	{key: "listen_addr", def: "127.0.0.1,::1", ini: blank, traits: fixed, field: func(c *Config) any { return &c.Listen.Addrs },
		doc: "addresses to listen on, separated by commas; * is all, blank is no TCP"},
	{key: "listen_port", def: "6432", traits: fixed, limits: port, field: func(c *Config) any { return &c.Listen.Port },
		doc: "port for clients; 0 takes a free one"},
	{key: "listen_backlog", def: "1024", ini: "128", traits: fixed, field: func(c *Config) any { return &c.Listen.Backlog },
		doc: "connections the kernel queues before they are accepted"},
	{key: "unix_socket_dir", ini: "/tmp", traits: fixed, field: func(c *Config) any { return &c.Listen.SocketDir },
		doc: "directory of the Unix socket; blank is none"},
	{key: "unix_socket_mode", def: "0777", traits: fixed, field: func(c *Config) any { return &c.Listen.SocketMode },
		doc: "permissions of the Unix socket, octal"},
	{key: "unix_socket_group", traits: fixed, field: func(c *Config) any { return &c.Listen.SocketGroup },
		doc: "group of the Unix socket; blank leaves the process's"},
	{key: "so_reuseport", def: "0", traits: fixed | inert, field: func(c *Config) any { return &c.Listen.ReusePort },
		doc: "several processes share one port"},
	{key: "http_addr", def: "127.0.0.1:9127", traits: fixed, field: func(c *Config) any { return &c.HTTP.Addr },
		doc: "host:port of /livez, /readyz and /metrics; port 0 takes a free one, blank is off"},

	// Pools
	{key: "pool_mode", def: "transaction", ini: "session", field: func(c *Config) any { return &c.Pool.Mode },
		doc: "when a server connection returns to its pool: session, transaction or statement"},
	{key: "default_pool_size", def: "20", field: func(c *Config) any { return &c.Pool.Size },
		doc: "server connections per database and user; 0 is unlimited"},
	{key: "min_pool_size", def: "0", field: func(c *Config) any { return &c.Pool.MinSize },
		doc: "server connections kept open while a pool is in use"},
	{key: "reserve_pool_size", def: "0", field: func(c *Config) any { return &c.Pool.ReserveSize },
		doc: "extra server connections for a pool whose clients wait too long"},
	{key: "reserve_pool_timeout", def: "5", field: func(c *Config) any { return &c.Pool.ReserveTimeout },
		doc: "wait after which the reserve is used; 0 is never"},
	{key: "server_connect_concurrency", def: "8", limits: limits{lo: 1, hi: 1000}, field: func(c *Config) any { return &c.Pool.MaxConnecting },
		doc: "connection attempts under way at once in one pool"},
	{key: "max_client_conn", def: "100", limits: positive, field: func(c *Config) any { return &c.Limits.Clients },
		doc: "clients in all"},
	{key: "max_db_connections", def: "0", field: func(c *Config) any { return &c.Limits.DatabaseServers },
		doc: "server connections per database, all users; 0 is unlimited"},
	{key: "max_user_connections", def: "0", field: func(c *Config) any { return &c.Limits.UserServers },
		doc: "server connections per user, all databases; 0 is unlimited"},
	{key: "max_db_client_connections", def: "0", field: func(c *Config) any { return &c.Limits.DatabaseClients },
		doc: "clients per database; 0 is unlimited"},
	{key: "max_user_client_connections", def: "0", field: func(c *Config) any { return &c.Limits.UserClients },
		doc: "clients per user; 0 is unlimited"},
	{key: "server_round_robin", def: "0", field: func(c *Config) any { return &c.Server.RoundRobin },
		doc: "use idle server connections in turn instead of the warmest first"},

	// What clients may say
	{key: "ignore_startup_parameters", field: func(c *Config) any { return &c.Session.IgnoreStartup },
		doc: "startup parameters to accept and drop, separated by commas"},
	{key: "track_extra_parameters", def: "IntervalStyle", traits: fixed, field: func(c *Config) any { return &c.Session.Track },
		doc: "parameters kept per client beside DateStyle, client_encoding, TimeZone, standard_conforming_strings, application_name"},
	{key: "max_prepared_statements", def: "200", field: func(c *Config) any { return &c.Session.MaxPreparedStatements },
		doc: "prepared statements kept per server connection; 0 is no tracking"},
	{key: "session_state", def: "pin", field: func(c *Config) any { return &c.Session.State },
		doc: "outside session mode: pin (keep parameters, and clients with session objects at their server connection), track (drop objects), pgbouncer"},
	{key: "session_probe", def: "auto", field: func(c *Config) any { return &c.Session.Probe },
		doc: "ask the server what a client may have left in its session: auto, or off to take its texts at their word"},
	{key: "harmless_functions", field: func(c *Config) any { return &c.Session.Harmless },
		doc: "functions that leave nothing in a session, beside PostgreSQL's own; with their schema if they are called by it"},
	{key: "pin_functions", field: func(c *Config) any { return &c.Session.Pinning },
		doc: "functions that keep their caller at its server connection for good, such as currval, lastval, setseed"},
	{key: "disable_pqexec", def: "0", traits: fixed | inert, field: func(c *Config) any { return &c.Session.DisablePQExec },
		doc: "refuse several statements in one simple query"},
	{key: "application_name_add_host", def: "0", traits: inert, field: func(c *Config) any { return &c.Session.ApplicationNameAddHost },
		doc: "add the client's address to application_name"},
	{key: "login_notify_message", traits: inert, field: func(c *Config) any { return &c.Session.LoginNotify },
		doc: "notice to every client that logs in"},

	// Care for server connections
	{key: "server_reset_query", def: "DISCARD ALL", field: func(c *Config) any { return &c.Server.ResetQuery },
		doc: "run when a session-mode client leaves; blank is none"},
	{key: "server_reset_query_always", def: "0", field: func(c *Config) any { return &c.Server.ResetAlways },
		doc: "run server_reset_query in every pool mode"},
	{key: "server_check_query", def: emptyQuery, field: func(c *Config) any { return &c.Server.CheckQuery },
		doc: "proves an idle server connection alive; <empty> is the empty query, blank is no check"},
	{key: "server_check_delay", def: "30", field: func(c *Config) any { return &c.Server.CheckDelay },
		doc: "idle time after which a server connection is checked before use"},
	{key: "server_fast_close", def: "0", traits: inert, field: func(c *Config) any { return &c.Server.FastClose },
		doc: "close replaced session-mode servers without waiting for the client"},
	{key: "server_lifetime", def: "3600", field: func(c *Config) any { return &c.Server.Lifetime },
		doc: "age at which a server connection is replaced; 0 is after one use"},
	{key: "server_idle_timeout", def: "600", field: func(c *Config) any { return &c.Server.IdleTimeout },
		doc: "idle time after which a server connection is closed; 0 is never"},
	{key: "server_connect_timeout", def: "15", field: func(c *Config) any { return &c.Server.ConnectTimeout },
		doc: "time for connecting and logging in to a server"},
	{key: "server_login_retry", def: "15", field: func(c *Config) any { return &c.Server.LoginRetry },
		doc: "longest pause between failing attempts to reach a server"},

	// Timeouts
	{key: "query_wait_timeout", def: "120", field: func(c *Config) any { return &c.Timeouts.QueryWait },
		doc: "longest wait for a server connection; 0 is forever"},
	{key: "query_wait_notify", def: "5", limits: seconds, field: func(c *Config) any { return &c.Timeouts.QueryWaitNotify },
		doc: "wait after which a client is told that it queues; 0 is never"},
	{key: "cancel_wait_timeout", def: "10", field: func(c *Config) any { return &c.Timeouts.CancelWait },
		doc: "longest wait of a cancel request for a connection; 0 is forever"},
	{key: "client_login_timeout", def: "60", field: func(c *Config) any { return &c.Timeouts.ClientLogin },
		doc: "time for a client to log in; 0 is forever"},
	{key: "client_idle_timeout", def: "0", field: func(c *Config) any { return &c.Timeouts.ClientIdle },
		doc: "idle time after which a client is disconnected; 0 is never"},
	{key: "query_timeout", def: "0", field: func(c *Config) any { return &c.Timeouts.Query },
		doc: "longest running time of a query; 0 is forever"},
	{key: "idle_transaction_timeout", def: "0", field: func(c *Config) any { return &c.Timeouts.IdleTransaction },
		doc: "longest idle time inside a transaction; 0 is forever"},
	{key: "transaction_timeout", def: "0", field: func(c *Config) any { return &c.Timeouts.Transaction },
		doc: "longest running time of a transaction; 0 is forever"},
	{key: "suspend_timeout", def: "10", traits: inert, field: func(c *Config) any { return &c.Timeouts.Suspend },
		doc: "time to flush buffers on SUSPEND"},
	{key: "autodb_idle_timeout", def: "3600", traits: inert, field: func(c *Config) any { return &c.Timeouts.AutoDBIdle },
		doc: "idle time after which a database made from * is forgotten"},
	{key: "pool_idle_timeout", def: "0", traits: inert, field: func(c *Config) any { return &c.Timeouts.PoolIdle },
		doc: "idle time after which an empty pool is forgotten; 0 is never"},
	{key: "drain_timeout", def: "25", field: func(c *Config) any { return &c.Timeouts.Drain },
		doc: "how long a polite stop waits for clients; 0 is not at all"},

	// Authentication
	{key: "auth_type", def: "passthrough", ini: "md5", field: func(c *Config) any { return &c.Auth.Type },
		doc: "how clients prove who they are: trust, any, plain, md5, scram-sha-256 or passthrough"},
	{key: "auth_file", field: func(c *Config) any { return &c.Auth.File },
		doc: "file of users and secrets (userlist.txt)"},
	{key: "passthrough_ttl", def: "600", field: func(c *Config) any { return &c.Auth.PassthroughTTL },
		doc: "how long keys from a passed-through password are kept; 0 is until they fail"},
	{key: "scram_iterations", def: "4096", limits: limits{lo: 1, hi: 1_000_000}, field: func(c *Config) any { return &c.Auth.ScramIterations },
		doc: "iterations of SCRAM secrets made from plain passwords"},
	{key: "auth_hba_file", traits: inert, field: func(c *Config) any { return &c.Auth.HBAFile },
		doc: "rules for auth_type hba"},
	{key: "auth_ident_file", traits: inert, field: func(c *Config) any { return &c.Auth.IdentFile },
		doc: "name maps for auth_type hba"},
	{key: "auth_user", field: func(c *Config) any { return &c.Auth.User },
		doc: "user who runs auth_query; blank is no look-up"},
	{key: "auth_query", def: defaultAuthQuery, field: func(c *Config) any { return &c.Auth.Query },
		doc: "query for name and secret of the user $1, who is not in auth_file"},
	{key: "auth_dbname", field: func(c *Config) any { return &c.Auth.DBName },
		doc: "database auth_query runs in; blank is the client's"},
	{key: "auth_ldap_options", traits: inert, field: func(c *Config) any { return &c.Auth.LDAPOptions },
		doc: "options of auth_type ldap"},
	{key: "admin_users", traits: inert, field: func(c *Config) any { return &c.Auth.Admins },
		doc: "users who may command the console"},
	{key: "stats_users", traits: inert, field: func(c *Config) any { return &c.Auth.Stats },
		doc: "users who may look at the console"},

	// TLS
	{key: "client_tls_sslmode", def: "prefer", ini: "disable", field: func(c *Config) any { return &c.TLS.Client.Mode },
		doc: "TLS with clients: disable, allow or prefer as they like, require, verify-ca or verify-full their certificates"},
	{key: "client_tls_key_file", field: func(c *Config) any { return &c.TLS.Client.KeyFile },
		doc: "private key of client_tls_cert_file"},
	{key: "client_tls_cert_file", field: func(c *Config) any { return &c.TLS.Client.CertFile },
		doc: "certificate shown to clients; blank is one made in memory at the start"},
	{key: "client_tls_ca_file", field: func(c *Config) any { return &c.TLS.Client.CAFile },
		doc: "authorities for clients' certificates"},
	{key: "client_tls_protocols", def: "secure", field: func(c *Config) any { return &c.TLS.Client.Protocols },
		doc: "TLS versions with clients: secure (1.2 and 1.3), all, or a list such as tlsv1.2,tlsv1.3"},
	{key: "client_tls_ciphers", def: "default", field: func(c *Config) any { return &c.TLS.Client.Ciphers },
		doc: "TLS 1.2 ciphers with clients: default, all, or a list in OpenSSL's syntax"},
	{key: "client_tls13_ciphers", traits: inert, field: func(c *Config) any { return &c.TLS.Client.TLS13Ciphers },
		doc: "TLS 1.3 ciphers with clients"},
	{key: "client_tls_dheparams", def: "auto", traits: inert, field: func(c *Config) any { return &c.TLS.Client.DHEParams },
		doc: "Diffie-Hellman parameters with clients"},
	{key: "client_tls_ecdhcurve", def: "auto", field: func(c *Config) any { return &c.TLS.Client.ECDHCurve },
		doc: "elliptic curve with clients: auto or a name such as X25519 or prime256v1"},
	{key: "server_tls_sslmode", def: "prefer", field: func(c *Config) any { return &c.TLS.Server.Mode },
		doc: "TLS with servers: disable, allow, prefer, require, verify-ca, verify-full"},
	{key: "server_tls_key_file", field: func(c *Config) any { return &c.TLS.Server.KeyFile },
		doc: "private key of server_tls_cert_file"},
	{key: "server_tls_cert_file", field: func(c *Config) any { return &c.TLS.Server.CertFile },
		doc: "certificate shown to servers"},
	{key: "server_tls_ca_file", field: func(c *Config) any { return &c.TLS.Server.CAFile },
		doc: "authorities for servers' certificates; blank is the system's"},
	{key: "server_tls_protocols", def: "secure", field: func(c *Config) any { return &c.TLS.Server.Protocols },
		doc: "TLS versions with servers: secure (1.2 and 1.3), all, or a list such as tlsv1.2,tlsv1.3"},
	{key: "server_tls_ciphers", def: "default", field: func(c *Config) any { return &c.TLS.Server.Ciphers },
		doc: "TLS 1.2 ciphers with servers: default, all, or a list in OpenSSL's syntax"},
	{key: "server_tls13_ciphers", traits: inert, field: func(c *Config) any { return &c.TLS.Server.TLS13Ciphers },
		doc: "TLS 1.3 ciphers with servers"},

	// Logging
	{key: "log_level", def: "info", field: func(c *Config) any { return &c.Log.Level },
		doc: "least severe level that is logged: debug, info, warn, error"},
	{key: "log_format", def: "text", traits: fixed, field: func(c *Config) any { return &c.Log.Format },
		doc: "form of log lines: text or json"},
	{key: "logfile", field: func(c *Config) any { return &c.Log.File },
		doc: "file for log lines; blank is standard error"},
	{key: "verbose", def: "0", field: func(c *Config) any { return &c.Log.Verbose },
		doc: "above 0 is log_level debug"},
	{key: "log_connections", def: "1", field: func(c *Config) any { return &c.Log.Connections },
		doc: "log logins"},
	{key: "log_disconnections", def: "1", field: func(c *Config) any { return &c.Log.Disconnections },
		doc: "log disconnections with their reasons"},
	{key: "log_pooler_errors", def: "1", field: func(c *Config) any { return &c.Log.PoolerErrors },
		doc: "log errors sent to clients"},
	{key: "log_stats", def: "1", traits: inert, field: func(c *Config) any { return &c.Log.Stats },
		doc: "log statistics every stats_period"},
	{key: "stats_period", def: "60", traits: inert, limits: limits{whole: true}, field: func(c *Config) any { return &c.Log.StatsPeriod },
		doc: "period of statistics"},
	{key: "syslog", def: "0", traits: inert, field: func(c *Config) any { return &c.Log.Syslog },
		doc: "log to syslog"},
	{key: "syslog_ident", def: "pgberth", ini: "pgbouncer", traits: inert, field: func(c *Config) any { return &c.Log.SyslogIdent },
		doc: "name in syslog"},
	{key: "syslog_facility", def: "daemon", traits: inert, field: func(c *Config) any { return &c.Log.SyslogFacility },
		doc: "facility in syslog"},

	// The process
	{key: "job_name", def: "pgberth", ini: "pgbouncer", traits: fixed, field: func(c *Config) any { return &c.Process.JobName },
		doc: "name of this process in logs"},
	{key: "pidfile", traits: fixed, field: func(c *Config) any { return &c.Process.PIDFile },
		doc: "file for the process id; blank is none"},
	{key: "user", traits: fixed | inert, field: func(c *Config) any { return &c.Process.User },
		doc: "system user to become"},
	{key: "conffile", traits: inert, field: func(c *Config) any { return &c.Process.ConfFile },
		doc: "file to reload from"},
	{key: "peer_id", def: "0", traits: inert, limits: limits{hi: 16383}, field: func(c *Config) any { return &c.Process.PeerID },
		doc: "this process among its peers; 0 is none"},

	// Input and output
	{key: "max_packet_size", def: "2147483647", limits: limits{lo: 1024}, field: func(c *Config) any { return &c.Session.MaxPacketSize },
		doc: "longest message that passes, in bytes"},
	{key: "pkt_buf", def: "4096", traits: fixed | inert, limits: positive, field: func(c *Config) any { return &c.Session.PacketBuffer },
		doc: "PgBouncer's buffer size"},
	{key: "sbuf_loopcnt", def: "5", traits: inert, field: func(c *Config) any { return &c.Session.BufferLoops },
		doc: "PgBouncer's reads in a row from one socket"},
	{key: "tcp_defer_accept", def: "1", traits: fixed, limits: seconds, field: func(c *Config) any { return &c.TCP.DeferAccept },
		doc: "let the kernel hold back connections until the client speaks"},
	{key: "tcp_keepalive", def: "1", field: func(c *Config) any { return &c.TCP.Keepalive },
		doc: "TCP keepalive"},
	{key: "tcp_keepcnt", def: "0", field: func(c *Config) any { return &c.TCP.KeepaliveCount },
		doc: "unanswered probes that end a connection; 0 is the system's"},
	{key: "tcp_keepidle", def: "0", limits: seconds, field: func(c *Config) any { return &c.TCP.KeepaliveIdle },
		doc: "idle time before the first probe; 0 is the system's"},
	{key: "tcp_keepintvl", def: "0", limits: seconds, field: func(c *Config) any { return &c.TCP.KeepaliveInterval },
		doc: "time between probes; 0 is the system's"},
	{key: "tcp_user_timeout", def: "0", limits: millis, field: func(c *Config) any { return &c.TCP.UserTimeout },
		doc: "time sent data may stay unacknowledged, in milliseconds; 0 is the system's"},
	{key: "tcp_socket_buffer", def: "0", field: func(c *Config) any { return &c.TCP.SocketBuffer },
		doc: "kernel buffer per socket, in bytes; 0 is the system's"},

	// Names
	{key: "dns_max_ttl", def: "15", field: func(c *Config) any { return &c.DNS.MaxTTL },
		doc: "how long the addresses of a server's name are kept"},
	{key: "dns_nxdomain_ttl", def: "15", field: func(c *Config) any { return &c.DNS.NXDomainTTL },
		doc: "how long a failed look-up is kept"},
	{key: "dns_zone_check_period", def: "0", field: func(c *Config) any { return &c.DNS.ZoneCheckPeriod },
		doc: "how often the names of connected servers are looked up again; 0 is when a connection is opened"},
	{key: "resolv_conf", traits: fixed, field: func(c *Config) any { return &c.DNS.ResolvConf },
		doc: "file whose nameserver lines are used instead of the system's"},
}
