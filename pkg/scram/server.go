package scram

import (
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"
)

// ErrProof occurs when a well-formed client-final-message proves another password than the verifier's.
var ErrProof = errors.New("password authentication failed")

// Server checks one client's knowledge of a password: First, then Final, each once. A failed exchange stays failed.
type Server struct {
	verifier Verifier
	nonce    string // our part, as written
	step     step

	header      string // what the client's channel binding data must decode to: its gs2 header
	auth        string // client-first-bare "," server-first ",": the beginning of the AuthMessage
	clientNonce string
	clientKey   [32]byte
}

// step is where an exchange stands; it only moves forward, and to failed on any error.
type step uint8

const (
	stepFirst  step = iota // nothing was exchanged
	stepFinal              // the first messages were exchanged
	stepVerify             // client only: our proof is sent, the server's is awaited
	stepDone               // both sides are satisfied
	stepFailed
)

// NewServer begins an exchange. The nonce is 1 to 192 random bytes (18 are usual) never used before.
func NewServer(v Verifier, nonce []byte) *Server {
	return &Server{verifier: v, nonce: newNonce(nonce)}
}

// newNonce writes raw random bytes as a nonce.
func newNonce(raw []byte) string {
	s := encode64(raw)
	if s == "" || len(s) > MaxNonce {
		panic("scram: a nonce has 1 to 192 random bytes")
	}
	return s
}

// First takes the client-first-message and returns the server-first-message.
func (s *Server) First(msg []byte) (reply []byte, err error) {
	if s.step != stepFirst {
		s.step = stepFailed
		return nil, errors.New("SCRAM client-first-message sent out of order")
	}
	s.step = stepFailed
	const name = "client-first-message"
	if err := checkMessage(name, msg); err != nil {
		return nil, err
	}
	text := string(msg)
	header, bare, err := cutHeader(name, text)
	if err != nil {
		return nil, err
	}
	attrs := newAttributes(name, bare)
	// The user is the one of the startup packet; like PostgreSQL we ignore what SCRAM says about it.
	if _, err := attrs.take('n'); err != nil {
		return nil, err
	}
	nonce, err := attrs.take('r')
	if err != nil {
		return nil, err
	}
	if err := checkNonce(name, nonce); err != nil {
		return nil, err
	}
	if err := attrs.optional(); err != nil {
		return nil, err
	}
	first := "r=" + nonce + s.nonce + ",s=" + encode64(s.verifier.Salt) + ",i=" + strconv.Itoa(s.verifier.Iterations)
	s.header, s.clientNonce, s.auth = header, nonce, bare+","+first+","
	s.step = stepFinal
	return []byte(first), nil
}

// cutHeader splits off the gs2 header: the channel binding flag and an authorization identity, which must be empty.
func cutHeader(name, text string) (header, bare string, err error) {
	switch {
	case strings.HasPrefix(text, "p"):
		return "", "", malformed(name, "channel binding was not offered, the client must not require it")
	case !strings.HasPrefix(text, "n,") && !strings.HasPrefix(text, "y,"):
		return "", "", malformed(name, "it must begin with the channel binding flag n or y and a comma")
	}
	identity, _, ok := strings.Cut(text[2:], ",")
	if !ok {
		return "", "", malformed(name, "it ends too early")
	}
	if identity != "" {
		return "", "", malformed(name, "an authorization identity is not supported")
	}
	return text[:3], text[3:], nil
}

// optional skips extensions, which may be ignored unless they repeat an attribute with a meaning.
func (a *attributes) optional() error {
	for a.open {
		name, _, err := a.next()
		if err != nil {
			return err
		}
		if strings.IndexByte("amnrcsivpe", name) >= 0 {
			return malformed(a.message, "attribute %c= is repeated or out of place", name)
		}
	}
	return nil
}

// Final takes the client-final-message and returns the server-final-message, or ErrProof.
func (s *Server) Final(msg []byte) (reply []byte, err error) {
	if s.step != stepFinal {
		s.step = stepFailed
		return nil, errors.New("SCRAM client-final-message sent out of order")
	}
	s.step = stepFailed
	const name = "client-final-message"
	if err := checkMessage(name, msg); err != nil {
		return nil, err
	}
	// The proof is last and covers everything before it.
	text := string(msg)
	cut := strings.LastIndex(text, ",p=")
	if cut < 0 {
		return nil, malformed(name, "attribute p= is missing")
	}
	proof, ok := decodeKey(text[cut+len(",p="):])
	if !ok {
		return nil, malformed(name, "the proof must be base64 of 32 bytes and come last")
	}
	attrs := newAttributes(name, text[:cut])
	binding, err := attrs.take('c')
	if err != nil {
		return nil, err
	}
	if binding != encode64([]byte(s.header)) {
		return nil, malformed(name, "its channel binding differs from the client-first-message")
	}
	nonce, err := attrs.take('r')
	if err != nil {
		return nil, err
	}
	if nonce != s.clientNonce+s.nonce {
		return nil, malformed(name, "its nonce is not the one agreed on")
	}
	if err := attrs.optional(); err != nil {
		return nil, err
	}

	auth := s.auth + text[:cut]
	clientKey := xor(proof, mac(s.verifier.StoredKey[:], auth))
	if !equal(sha256.Sum256(clientKey[:]), s.verifier.StoredKey) {
		return nil, ErrProof
	}
	s.clientKey, s.step = clientKey, stepDone
	signature := mac(s.verifier.ServerKey[:], auth)
	return []byte("v=" + encode64(signature[:])), nil
}

// Keys are what the client proved to have, enough to log in for it where the verifier comes from. It panics before Final
// succeeded.
func (s *Server) Keys() Keys {
	v := s.verifier
	return Keys{ClientKey: s.ClientKey(), ServerKey: v.ServerKey, Salt: v.Salt, Iterations: v.Iterations}
}

// ClientKey is the key the client proved to have. It panics before Final succeeded.
func (s *Server) ClientKey() [32]byte {
	if s.step != stepDone {
		panic("scram: ClientKey is known only after Final succeeded")
	}
	return s.clientKey
}
