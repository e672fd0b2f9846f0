package pool

// Reason says why a backend is closed or a waiter fails. Its text is PgBouncer's where PgBouncer has one.
type Reason uint8

const (
	NoReason Reason = iota

	// Reasons the pool itself gives.

	ServerIdleTimeout
	ServerLifetimeOver
	Evicted
	TooManyServers
	QueryWaitTimeout
	DatabaseRemoved
	ConfigurationChanged
	ConnectStringChanged
	CapacityLowered
	LoginFailed

	// Reasons only the caller knows, for Discard.

	ObsoleteConnection
	IdleServerDirty
	ServerCrashed
	ConnectFailed
	ConnectTimeout
	QueryTimeout
	TransactionTimeout
	IdleTransactionTimeout
	TestFailed
	ResetFailed
	ParameterChangeFailed
	InvalidParameter
	ForeignParameter
	BadHeader
	ClientLeftUnready
	ClientLeftQuerying
	ClientLeftUnsent
	ReplicationClosed
	AdminKilled
	Paused
	ShuttingDown
	AddressGone
	WrongRole
)

var reasonTexts = [...]string{
	NoReason:               "",
	ServerIdleTimeout:      "server idle timeout",
	ServerLifetimeOver:     "server lifetime over",
	Evicted:                "evicted",
	TooManyServers:         "too many servers in the pool",
	QueryWaitTimeout:       "query_wait_timeout",
	DatabaseRemoved:        "database removed",
	ConfigurationChanged:   "database configuration changed",
	ConnectStringChanged:   "connect string changed",
	CapacityLowered:        "capacity lowered",
	LoginFailed:            "server login failed",
	ObsoleteConnection:     "obsolete connection",
	IdleServerDirty:        "idle server got dirty",
	ServerCrashed:          "server conn crashed?",
	ConnectFailed:          "connect failed",
	ConnectTimeout:         "connect timeout",
	QueryTimeout:           "query timeout",
	TransactionTimeout:     "transaction timeout",
	IdleTransactionTimeout: "idle transaction timeout",
	TestFailed:             "test query failed",
	ResetFailed:            "reset query failed",
	ParameterChangeFailed:  "var change failed",
	InvalidParameter:       "invalid server parameter",
	ForeignParameter:       "it has parameters that no other client may see",
	BadHeader:              "bad pkt header",
	ClientLeftUnready:      "client disconnect while server was not ready",
	ClientLeftQuerying:     "client disconnected with query in progress",
	ClientLeftUnsent:       "client disconnect before everything was sent to the server",
	ReplicationClosed:      "replication client was closed",
	AdminKilled:            "admin forced disconnect",
	Paused:                 "pause mode",
	ShuttingDown:           "server shutting down",
	AddressGone:            "server address changed",
	WrongRole:              "server is not what target_session_attrs asks for",
}

func (r Reason) String() string { return reasonTexts[r] }
