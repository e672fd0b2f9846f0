package scram

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrServerProof occurs when the server could not prove that it knows the password's verifier: it is not the
	// server we take it for. Nothing may be sent to it.
	ErrServerProof = errors.New("the server did not prove that it knows the password")
	// ErrKeys occurs when a server's salt or iteration count differ from those of the keys given to
	// NewClientFromKeys: the password was set again since, or this is another server. Only the password helps.
	ErrKeys = errors.New("the server's salt or iteration count differ from those of the stored keys")
)

// Client proves a password to one server: First, Challenge, Verify, each once. A failed exchange stays failed.
type Client struct {
	password string
	keys     Keys
	haveKeys bool
	step     step

	flag    string // GS2: what the client says about channel binding, "" is none
	channel []byte // what the exchange is bound to

	bare  string // client-first-bare
	nonce string // our part of the nonce
	auth  string // the whole AuthMessage
}

// What a client says about channel binding that supports it but was not offered it, and one that binds.
const (
	flagNotOffered = "y"
	flagEndPoint   = "p=tls-server-end-point"
)

// header is the GS2 header, without an authorization identity.
func (c *Client) header() string {
	if c.flag == "" {
		return "n,,"
	}
	return c.flag + ",,"
}

// NewClient begins an exchange. The nonce is 1 to 192 random bytes (18 are usual) never used before.
func NewClient(password string, nonce []byte) *Client {
	c := newClient(nonce)
	c.password = password
	return c
}

// NewClientFromKeys begins an exchange without the password; the server must use the keys' salt and iteration count.
func NewClientFromKeys(k Keys, nonce []byte) *Client {
	c := newClient(nonce)
	c.keys, c.haveKeys = k, true
	return c
}

func newClient(nonce []byte) *Client {
	n := newNonce(nonce)
	// The user name stays empty: PostgreSQL takes the startup packet's.
	return &Client{nonce: n, bare: "n=,r=" + n}
}

// BindServerEndPoint binds the exchange to the TLS connection in which it runs, by the hash of the server's certificate
// that RFC 5929 calls tls-server-end-point. The mechanism is then MechanismPlus. It is called before First.
func (c *Client) BindServerEndPoint(hash []byte) {
	if c.step != stepFirst {
		panic("scram: BindServerEndPoint is called before First")
	}
	c.flag, c.channel = flagEndPoint, hash
}

// BindingNotOffered says that this client would have bound the exchange but that the server did not offer it, so that a
// server that did finds out that somebody in between has removed the offer. It is called before First.
func (c *Client) BindingNotOffered() {
	if c.step != stepFirst {
		panic("scram: BindingNotOffered is called before First")
	}
	c.flag = flagNotOffered
}

// First returns the client-first-message.
func (c *Client) First() []byte {
	if c.step != stepFirst {
		panic("scram: First is called once")
	}
	c.step = stepFinal
	return []byte(c.header() + c.bare)
}

// Challenge takes the server-first-message and returns the client-final-message. With a password it costs the
// iterations the server asks for, up to MaxIterations.
func (c *Client) Challenge(serverFirst []byte) (clientFinal []byte, err error) {
	if c.step != stepFinal {
		c.step = stepFailed
		return nil, errors.New("SCRAM server-first-message sent out of order")
	}
	c.step = stepFailed
	nonce, salt, iterations, err := c.parseChallenge(serverFirst)
	if err != nil {
		return nil, err
	}
	if !c.haveKeys {
		c.keys = derive(prepare(c.password), salt, iterations)
		c.password = ""
	} else if c.keys.Iterations != iterations || string(c.keys.Salt) != string(salt) {
		return nil, ErrKeys
	}

	withoutProof := "c=" + encode64(append([]byte(c.header()), c.channel...)) + ",r=" + nonce
	c.auth = c.bare + "," + string(serverFirst) + "," + withoutProof
	stored := sha256.Sum256(c.keys.ClientKey[:])
	proof := xor(c.keys.ClientKey, mac(stored[:], c.auth))
	c.step = stepVerify
	return []byte(withoutProof + ",p=" + encode64(proof[:])), nil
}

// parseChallenge checks the server-first-message against the grammar, our nonce and the bounds.
func (c *Client) parseChallenge(msg []byte) (nonce string, salt []byte, iterations int, err error) {
	const name = "server-first-message"
	fail := func(err error) (string, []byte, int, error) { return "", nil, 0, err }
	if err := checkMessage(name, msg); err != nil {
		return fail(err)
	}
	attrs := newAttributes(name, string(msg))
	if nonce, err = attrs.take('r'); err != nil {
		return fail(err)
	}
	theirs, ok := strings.CutPrefix(nonce, c.nonce)
	if !ok {
		return fail(malformed(name, "its nonce does not begin with the client's"))
	}
	if err := checkNonce(name, theirs); err != nil {
		return fail(err)
	}
	salt64, err := attrs.take('s')
	if err != nil {
		return fail(err)
	}
	if salt, ok = decode64(salt64); !ok || len(salt) > MaxSalt {
		return fail(malformed(name, "the salt must be base64 of 1 to %d bytes", MaxSalt))
	}
	count, err := attrs.take('i')
	if err != nil {
		return fail(err)
	}
	if iterations, ok = parseIterations(count); !ok {
		return fail(malformed(name, "the iteration count must be a number from 1 to %d", MaxIterations))
	}
	if err := attrs.end(); err != nil {
		return fail(err)
	}
	return nonce, salt, iterations, nil
}

// Verify takes the server-final-message. Only after it returned nil does the server count as the one that knows the
// password.
func (c *Client) Verify(serverFinal []byte) error {
	if c.step != stepVerify {
		c.step = stepFailed
		return errors.New("SCRAM server-final-message sent out of order")
	}
	c.step = stepFailed
	const name = "server-final-message"
	if err := checkMessage(name, serverFinal); err != nil {
		return err
	}
	attrs := newAttributes(name, string(serverFinal))
	key, value, err := attrs.next()
	switch {
	case err != nil:
		return err
	case key == 'e':
		return fmt.Errorf("the server refused the SCRAM exchange: %q", value[:min(len(value), 60)])
	case key != 'v':
		return malformed(name, "attribute v= expected, %q found", string(key))
	}
	if err := attrs.end(); err != nil {
		return err
	}
	signature, ok := decodeKey(value)
	if !ok {
		return malformed(name, "the signature must be base64 of 32 bytes")
	}
	if !equal(signature, mac(c.keys.ServerKey[:], c.auth)) {
		return ErrServerProof
	}
	c.step = stepDone
	return nil
}

// Keys are what may be kept instead of the password. It panics before Verify succeeded.
func (c *Client) Keys() Keys {
	if c.step != stepDone {
		panic("scram: Keys are proved only after Verify succeeded")
	}
	return c.keys
}
