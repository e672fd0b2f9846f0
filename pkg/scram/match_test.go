package scram

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestAVerifierMatchesItsPasswordAndGivesTheKeys(t *testing.T) {
	v := NewVerifier("secret", []byte("sixteen bytes of"), 4096)
	keys, ok := v.Match("secret")
	if !ok || sha256.Sum256(keys.ClientKey[:]) != v.StoredKey || keys.ServerKey != v.ServerKey {
		t.Error("the right password does not match")
	}
	if _, ok := v.Match("other"); ok {
		t.Error("another password matches")
	}
}

func TestAServerLearnsTheKeysItsClientProved(t *testing.T) {
	s := rfcServer()
	mustPanic(t, "before anything is proved", func() { s.Keys() })
	if _, err := s.First([]byte(rfcClientFirst)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Final([]byte(rfcClientFinal)); err != nil {
		t.Fatal(err)
	}
	k := s.Keys()
	if sha256.Sum256(k.ClientKey[:]) != s.verifier.StoredKey || k.ServerKey != s.verifier.ServerKey ||
		!bytes.Equal(k.Salt, s.verifier.Salt) || k.Iterations != s.verifier.Iterations {
		t.Error("the keys do not fit the verifier")
	}
}
