package scram

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Verifier is what a server stores about a password: enough to check a proof, not enough to make one.
type Verifier struct {
	Iterations           int
	Salt                 []byte
	StoredKey, ServerKey [32]byte
}

// Keys are enough to log into a server whose salt and iteration count match, without the password.
type Keys struct {
	ClientKey, ServerKey [32]byte
	Salt                 []byte
	Iterations           int
}

// ParseVerifier reads PostgreSQL's form, SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>.
// Its errors never quote the text, which may be a password put into the wrong column.
func ParseVerifier(s string) (Verifier, error) {
	rest, ok := strings.CutPrefix(s, Mechanism+"$")
	if !ok {
		return Verifier{}, errors.New("SCRAM verifier does not begin with " + Mechanism + "$")
	}
	head, tail, ok1 := strings.Cut(rest, "$")
	iterations, salt64, ok2 := strings.Cut(head, ":")
	stored, server, ok3 := strings.Cut(tail, ":")
	if !ok1 || !ok2 || !ok3 {
		return Verifier{}, errors.New("SCRAM verifier must have the form " + Mechanism + "$<iterations>:<salt>$<StoredKey>:<ServerKey>")
	}
	var v Verifier
	if v.Iterations, ok = parseIterations(iterations); !ok {
		return Verifier{}, fmt.Errorf("SCRAM verifier: the iteration count must be a number from 1 to %d", MaxIterations)
	}
	if v.Salt, ok = decode64(salt64); !ok || len(v.Salt) > MaxSalt {
		return Verifier{}, fmt.Errorf("SCRAM verifier: the salt must be base64 of 1 to %d bytes", MaxSalt)
	}
	if v.StoredKey, ok = decodeKey(stored); !ok {
		return Verifier{}, errors.New("SCRAM verifier: the StoredKey must be base64 of 32 bytes")
	}
	if v.ServerKey, ok = decodeKey(server); !ok {
		return Verifier{}, errors.New("SCRAM verifier: the ServerKey must be base64 of 32 bytes")
	}
	return v, nil
}

// String is the inverse of ParseVerifier. It is a secret: not for logs.
func (v Verifier) String() string {
	return Mechanism + "$" + strconv.Itoa(v.Iterations) + ":" + encode64(v.Salt) +
		"$" + encode64(v.StoredKey[:]) + ":" + encode64(v.ServerKey[:])
}

// NewVerifier derives what a server would store for the password.
// It panics unless the salt has 1 to MaxSalt bytes and iterations is within 1 to MaxIterations.
func NewVerifier(password string, salt []byte, iterations int) Verifier {
	if len(salt) == 0 || len(salt) > MaxSalt || iterations < 1 || iterations > MaxIterations {
		panic("scram: NewVerifier needs a salt and an iteration count within the package's bounds")
	}
	k := derive(prepare(password), salt, iterations)
	return Verifier{Iterations: iterations, Salt: k.Salt, StoredKey: sha256.Sum256(k.ClientKey[:]), ServerKey: k.ServerKey}
}

// Match compares a password with what a server stores about it, and gives the keys of one that is right.
func (v Verifier) Match(password string) (Keys, bool) {
	k := derive(prepare(password), v.Salt, v.Iterations)
	return k, equal(sha256.Sum256(k.ClientKey[:]), v.StoredKey)
}

// MockVerifier makes up a verifier for a user who does not exist, so that the dialogue looks like a wrong password:
// the same user always gets the same salt. No password proves it, since its StoredKey is the hash of no known key.
func MockVerifier(secret []byte, user string, iterations int) Verifier {
	part := func(label string) [32]byte { return mac(secret, label, "\x00", user) }
	salt := part("salt")
	return Verifier{Iterations: iterations, Salt: salt[:16], StoredKey: part("stored"), ServerKey: part("server")}
}

// derive computes both keys from a prepared password. The bounds were checked by the caller.
func derive(prepared string, salt []byte, iterations int) Keys {
	salted, err := pbkdf2.Key(sha256.New, prepared, salt, iterations, sha256.Size)
	if err != nil {
		panic("scram: PBKDF2 refused: " + err.Error()) // only a FIPS-140-only process with a short salt gets here
	}
	return Keys{
		ClientKey:  mac(salted, "Client Key"),
		ServerKey:  mac(salted, "Server Key"),
		Salt:       append([]byte(nil), salt...),
		Iterations: iterations,
	}
}

// mac is HMAC-SHA-256 of the concatenated parts.
func mac(key []byte, parts ...string) (sum [32]byte) {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write([]byte(p))
	}
	h.Sum(sum[:0])
	return sum
}

func xor(a, b [32]byte) (out [32]byte) {
	subtle.XORBytes(out[:], a[:], b[:])
	return out
}

func equal(a, b [32]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }
