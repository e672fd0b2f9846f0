package proxy

import (
	"io/fs"
	"net/netip"
	"time"

	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// AuthType is how clients prove who they are.
type AuthType uint8

const (
	// Trust asks for nothing.
	Trust AuthType = iota
	// Any is Trust that also ignores the name: every client becomes the database's forced user.
	Any
	// Plain asks for the password in clear and compares it with the user list.
	Plain
	// ScramSHA256 proves the password of the user list without showing it.
	ScramSHA256
	// MD5 has an md5 hash or a plain secret proved by md5, and a SCRAM verifier by SCRAM.
	MD5
	// Cert takes the client's certificate, which TLS has verified, for the proof: its common name is the user's.
	Cert
	// Passthrough asks for the password in clear and has the database server judge it.
	Passthrough
)

// Listener is an address to listen on.
type Listener struct {
	TCP     netip.AddrPort // or
	Unix    string         // the socket's path
	Mode    fs.FileMode    // of a Unix socket
	Group   int            // of a Unix socket; -1 leaves it alone
	Backlog int
	// Defer is how long the kernel may hold a TCP connection back whose client says nothing, so that accepting it and
	// reading its startup packet are one turn; 0 is not at all.
	Defer time.Duration
}

// Route is everything that holds for a client that logged in as some user to some database.
type Route struct {
	Database string // as clients call it; with User the identity of the pool
	User     string // the user the server sees: forced, or the client's

	Hosts    []string // names, addresses, or directories of Unix sockets; never empty
	Port     int
	Ports    []int // one for each host; nil: all have Port
	DBName   string
	Password string // User's, when it is known: in clear, an "md5…" hash, or a SCRAM verifier, of which clients prove the keys
	// Startup are sent to the server in the startup packet, besides user and database.
	Startup map[string]string

	Balance      LoadBalance
	Target       TargetSession
	ConnectQuery string // run after each login to a server; "" is none

	Pool       pool.Settings // Server is filled in by the proxy
	ResetQuery string        // "" when none runs; Pool.Reset says the same

	// Timeouts are those of the client that logged in.
	Timeouts Timeouts

	// Limits shared with other pools; 0 is none.
	MaxDatabaseBackends, MaxDatabaseClients int
	MaxUserBackends, MaxUserClients         int
}

// Settings is everything a Proxy obeys. It is immutable; Reload swaps it for another.
type Settings struct {
	Listeners []Listener

	Auth AuthType
	// Users is the user list: name to password, "md5…" hash or SCRAM verifier. Nil means that there is none.
	Users           map[string]string
	ScramIterations int
	PassthroughTTL  time.Duration

	ClientTLS *ClientTLS // nil offers none
	ServerTLS *ServerTLS // nil asks for none

	// Route resolves a login; false when there is no such database. It must be pure and fast.
	Route func(database, user string) (Route, bool)
	// Lookup tells how the secret of a user that Users does not have is found for a login to the database; false when it
	// is not. Nil is never.
	Lookup func(database string) (Lookup, bool)
	// AuthRoute is Route for auth_user's own pool, whomever the database forces clients to be. It is set with Lookup.
	AuthRoute  func(database, user string) (Route, bool)
	MaxClients int // 0 is unlimited

	// Tracked are the extra parameters kept per client; IgnoreStartup those that are dropped at login.
	Tracked       []string
	IgnoreStartup []string

	ServerCheckQuery     string        // "" is an empty Query
	QueryWaitNotify      time.Duration // a client that queues for so long is told; 0 is none, here and below
	ClientLoginTimeout   time.Duration
	ServerConnectTimeout time.Duration
	ServerCloseTimeout   time.Duration // how long a closing server connection may take to end
	CancelWaitTimeout    time.Duration

	MaxPacketSize int // bytes
	// MaxPrepared is how many prepared statements a server connection keeps outside session mode; 0 is to leave them
	// alone. A reload changes it for new server connections.
	MaxPrepared int
	// SessionState is what becomes of what clients leave in their sessions; Reader tells what their texts do there, nil is
	// not to look.
	SessionState SessionState
	Reader       *session.Reader
	ProbeOff     bool // take texts at their word
	KeepAlive    KeepAlive
	DNS          DNS
	// OnBackpressure is told when a server has no room for a login or does not serve yet. The loop calls it: it must not
	// block. Nil is nobody.
	OnBackpressure func(Backpressure)

	LogConnections    bool
	LogDisconnections bool
	LogPoolerErrors   bool
}

// KeepAlive are the TCP settings of both sides; zero values leave the system's.
type KeepAlive struct {
	On             bool
	Idle, Interval time.Duration
	Count          int
	UserTimeout    time.Duration
	SocketBuffer   int // bytes
}
