package config

import (
	"io/fs"
	"log/slog"
	"time"
)

// Config is the whole configuration. Load returns it complete and valid; nothing changes it afterwards.
type Config struct {
	Listen   Listen
	Pool     Pool
	Limits   Limits
	Server   Server
	Timeouts Timeouts
	Session  Session
	Auth     Auth
	TLS      TLS
	TCP      TCP
	DNS      DNS
	Log      Log
	Process  Process
	HTTP     HTTP

	Databases []Database // in file order; at most one is named "*", the template for any other name
	Users     []User
	Peers     []Peer
	Userlist  Userlist // the content of auth_file

	file    string // the file it was loaded from, "" without one
	origins map[string]Origin
	notes   []string
}

// Listen says where clients connect. All of it is fixed at start.
type Listen struct {
	Addrs       []string // host names or addresses without port; "*" is every interface; empty: no TCP
	Port        int      // 0 takes a free one
	Backlog     int
	SocketDir   string // "" is no Unix socket; the socket is SocketDir/.s.PGSQL.Port
	SocketMode  fs.FileMode
	SocketGroup string
	ReusePort   bool
}

// Pool holds the sizes of a pool whose database and user say nothing else.
type Pool struct {
	Mode           PoolMode
	Size           int // 0 = unlimited
	MinSize        int
	ReserveSize    int
	ReserveTimeout time.Duration // 0 = the reserve is never used
	MaxConnecting  int           // connection attempts under way at once in one pool
}

// Limits are counted over pools; 0 = unlimited.
type Limits struct {
	Clients         int
	DatabaseServers int
	UserServers     int
	DatabaseClients int
	UserClients     int
}

// Server is how connections to servers are cared for.
type Server struct {
	RoundRobin     bool
	ResetQuery     string // "" is none; see Route.ResetQuery for when it runs
	ResetAlways    bool
	CheckQuery     string // as written; Check tells what to do
	CheckDelay     time.Duration
	FastClose      bool
	Lifetime       time.Duration // 0 = one use
	IdleTimeout    time.Duration // 0 = never
	ConnectTimeout time.Duration // 0 = never
	LoginRetry     time.Duration
}

// Check returns the query that proves an idle server alive; on is false when servers are not checked. PgBouncer's word
// <empty> stands for the empty query, which a server answers without running anything.
func (s Server) Check() (query string, on bool) {
	if s.CheckQuery == emptyQuery {
		return "", true
	}
	return s.CheckQuery, s.CheckQuery != ""
}

const emptyQuery = "<empty>"

// Timeouts that end a client's or a statement's wait; 0 = never.
type Timeouts struct {
	QueryWait       time.Duration
	QueryWaitNotify time.Duration
	CancelWait      time.Duration
	ClientLogin     time.Duration
	ClientIdle      time.Duration
	Query           time.Duration
	IdleTransaction time.Duration
	Transaction     time.Duration
	Suspend         time.Duration
	AutoDBIdle      time.Duration
	PoolIdle        time.Duration
	Drain           time.Duration // how long a polite stop waits for clients
}

// Session is what is promised and refused to a client on the wire.
type Session struct {
	IgnoreStartup          []string // startup parameters accepted and dropped
	Track                  []string // parameters tracked beside PgBouncer's fixed five
	MaxPreparedStatements  int
	State                  SessionState
	Probe                  Probe
	Harmless               []string // functions that leave nothing in a session
	Pinning                []string // functions that keep their caller at its server connection
	DisablePQExec          bool
	ApplicationNameAddHost bool
	LoginNotify            string
	MaxPacketSize          int
	PacketBuffer           int
	BufferLoops            int
}

// Auth says how clients prove who they are.
type Auth struct {
	Type            AuthType
	File            string
	PassthroughTTL  time.Duration // how long keys derived from a passed-through password are kept
	ScramIterations int
	HBAFile         string
	IdentFile       string
	User            string
	Query           string
	DBName          string
	LDAPOptions     Secret
	Admins          []string
	Stats           []string
}

// TLS of both sides.
type TLS struct {
	Client ClientTLS // between clients and this process
	Server TLSSide   // between this process and servers
}

// TLSSide is one side's TLS.
type TLSSide struct {
	Mode         TLSMode
	KeyFile      string
	CertFile     string
	CAFile       string
	Protocols    string
	Ciphers      string
	TLS13Ciphers string

	material material
}

// ClientTLS is the side of clients, to whom this process is the server.
type ClientTLS struct {
	TLSSide
	DHEParams string
	ECDHCurve string
}

// TCP options of client and server sockets; 0 leaves the system's value.
type TCP struct {
	DeferAccept       time.Duration
	Keepalive         bool
	KeepaliveCount    int
	KeepaliveIdle     time.Duration
	KeepaliveInterval time.Duration
	UserTimeout       time.Duration
	SocketBuffer      int
}

// DNS lookups of server names.
type DNS struct {
	MaxTTL          time.Duration
	NXDomainTTL     time.Duration
	ZoneCheckPeriod time.Duration
	ResolvConf      string
}

// Log says what is logged and where.
type Log struct {
	Level          LogLevel
	Format         LogFormat
	File           string // "" is standard error
	Verbose        int
	Connections    bool
	Disconnections bool
	PoolerErrors   bool
	Stats          bool
	StatsPeriod    time.Duration
	Syslog         bool
	SyslogIdent    string
	SyslogFacility string
}

// Slog is the level for log/slog; PgBouncer's verbose, when set, means debug.
func (l Log) Slog() slog.Level {
	if l.Verbose > 0 {
		return slog.LevelDebug
	}
	return l.Level.slog()
}

// Process is the process itself.
type Process struct {
	JobName  string
	PIDFile  string
	User     string
	ConfFile string
	PeerID   int
}

// HTTP is where health and metrics are served.
type HTTP struct {
	Addr string // host:port; port 0 takes a free one; "" is off
}

// Database is an entry of databases. A nil field leaves the choice to the user's entry or the global setting.
type Database struct {
	Name            string
	DBName          string   // "" is the name the client asked for
	Hosts           []string // empty: Unix socket in Listen.SocketDir; a path: Unix socket there
	Ports           []int    // one for all hosts, or one for each
	User            string   // set: every client shares this user's pool
	Password        Secret
	AuthUser        string
	AuthQuery       string
	AuthDBName      string
	PoolMode        *PoolMode
	PoolSize        *int
	MinPoolSize     *int
	ReservePoolSize *int
	MaxServers      *int
	MaxClients      *int
	ServerLifetime  *time.Duration
	QueryWait       *time.Duration
	LoadBalance     LoadBalance
	TargetSession   TargetSession
	ConnectQuery    string
	ClientEncoding  string
	DateStyle       string
	TimeZone        string
	ApplicationName string

	at      Origin
	origins map[string]Origin
}

// User is an entry of users. A nil field leaves the choice to the database's entry or the global setting.
type User struct {
	Name            string
	PoolMode        *PoolMode
	PoolSize        *int
	ReservePoolSize *int
	MaxServers      *int
	MaxClients      *int
	Query           *time.Duration
	QueryWait       *time.Duration
	IdleTransaction *time.Duration
	Transaction     *time.Duration
	ClientIdle      *time.Duration

	at      Origin
	origins map[string]Origin
}

// Peer is an entry of peers: another process that cancel requests may belong to.
type Peer struct {
	Name     string // the peer's id in decimal
	Host     string
	Port     int
	PoolSize *int

	at      Origin
	origins map[string]Origin
}

// Notes are sentences an operator should read once: choices made for them that are not errors.
func (c *Config) Notes() []string { return c.notes }

// File is the file the configuration was loaded from, "" without one.
func (c *Config) File() string { return c.file }

// Origin tells where a global setting's value came from.
func (c *Config) Origin(key string) Origin { return c.origins[key] }
