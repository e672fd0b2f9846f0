// Package scram proves passwords the way PostgreSQL does: SCRAM-SHA-256 (RFC 5802, RFC 7677) as the server and as the
// client, the verifiers PostgreSQL stores, and the older md5 response.
//
// It refuses to read a clock, open a socket, log, or draw random bytes: messages and nonces come in as arguments and
// replies go out as return values. It refuses authorization identities, mandatory extensions and, as the server,
// channel binding, as a PostgreSQL without TLS does. Every size and count that the other side chooses has a bound below; what exceeds one is
// refused in one sentence which never holds a password, a key, a proof or a verifier.
//
// Not guaranteed: that a derived key leaves no trace in memory. Callers that keep Keys instead of a password keep
// something worth the password towards servers with the same salt and iteration count.
package scram

// Mechanism is the SASL name of what this package speaks.
const Mechanism = "SCRAM-SHA-256"

// MechanismPlus is its name with channel binding, which the client can do.
const MechanismPlus = "SCRAM-SHA-256-PLUS"

// Bounds on what the other side may ask for.
const (
	// MaxIterations bounds the work a server can impose: PostgreSQL's default is 4096, and deriving a key with this
	// many takes well under a second.
	MaxIterations = 1_000_000
	// MaxMessage bounds each SCRAM message in bytes.
	MaxMessage = 4096
	// MaxNonce bounds each side's part of the nonce in bytes, as written in the message. Drivers use 24 to 48.
	MaxNonce = 256
	// MaxSalt bounds the decoded salt in bytes. PostgreSQL's is 16.
	MaxSalt = 256
)

// DefaultIterations is what PostgreSQL uses for new verifiers.
const DefaultIterations = 4096
