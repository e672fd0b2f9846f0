package scram

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

func FuzzFirst(f *testing.F) {
	for _, s := range []string{rfcClientFirst, "y,,n=,r=abc", "n,,n=,r=abc,x=1", "p=tls-unique,,n=,r=a", "n,a=x,n=,r=a", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		reply, err := rfcServer().First(msg)
		if err != nil {
			return
		}
		// Oracle: a client that sent this nonce takes the reply, and everything else was permitted.
		text := string(msg)
		if !strings.HasPrefix(text, "n,,n=") && !strings.HasPrefix(text, "y,,n=") {
			t.Fatalf("accepted %q", text)
		}
		_, nonce, _ := strings.Cut(text[len("n,,"):], ",r=")
		nonce, _, _ = strings.Cut(nonce, ",")
		c := &Client{haveKeys: true, keys: Keys{Salt: rfcServer().verifier.Salt, Iterations: 4096}, nonce: nonce, bare: text[3:]}
		c.First()
		if _, err := c.Challenge(reply); err != nil {
			t.Fatalf("%q was answered by %q, which a client refuses: %v", msg, reply, err)
		}
	})
}

func FuzzFinal(f *testing.F) {
	for _, s := range []string{rfcClientFinal, rfcClientFinal + ",p=", "c=biws,r=x,p=", "c=biws", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		s := rfcServer()
		if _, err := s.First([]byte(rfcClientFirst)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Final(msg); err != nil {
			return
		}
		// Oracle: an accepted message is its own beginning and the one right proof of it.
		covered, _, _ := strings.Cut(string(msg), ",p=")
		key := rfcKeys.ClientKey
		stored := sha256.Sum256(key[:])
		h := hmac.New(sha256.New, stored[:])
		h.Write([]byte(rfcClientFirst[3:] + "," + rfcServerFirst + "," + covered))
		proof := h.Sum(nil)
		for i := range proof {
			proof[i] ^= key[i]
		}
		if want := covered + ",p=" + base64.StdEncoding.EncodeToString(proof); string(msg) != want {
			t.Fatalf("accepted %q, the right proof is in %q", msg, want)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	for _, s := range []string{rfcServerFirst, "r=" + rfcNonce + "x,s=QQ==,i=1", "r=,s=,i=", "r=x", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		c := rfcClient()
		nonce, salt, iterations, err := c.parseChallenge(msg)
		if err != nil {
			return
		}
		// Oracle: the message is exactly what a server with these values says.
		s := &Server{verifier: Verifier{Iterations: iterations, Salt: salt}, nonce: strings.TrimPrefix(nonce, rfcNonce)}
		again, err := s.First([]byte(rfcClientFirst))
		if err != nil || string(again) != string(msg) {
			t.Fatalf("accepted %q, a server would say %q, %v", msg, again, err)
		}
		if iterations > 100 {
			return // deriving is slow, the grammar was what mattered
		}
		s.verifier = NewVerifier("pencil", salt, iterations)
		c.First()
		final, err := c.Challenge(msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Final(final); err != nil {
			t.Fatalf("the server refuses the answer to %q: %v", msg, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	for _, s := range []string{rfcServerFinal, rfcServerFinal + ",x=1", "e=unknown-user", "v=", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		c := rfcClient()
		c.keys, c.haveKeys = rfcKeys, true
		c.First()
		if _, err := c.Challenge([]byte(rfcServerFirst)); err != nil {
			t.Fatal(err)
		}
		if err := c.Verify(msg); (err == nil) != (string(msg) == rfcServerFinal) {
			t.Fatalf("%q: %v", msg, err)
		}
	})
}

func FuzzParseVerifier(f *testing.F) {
	for _, c := range postgresVerifiers[:3] {
		f.Add(c.verifier)
	}
	f.Add("SCRAM-SHA-256$4096:QQ==$A:B")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVerifier(s)
		if err != nil {
			return
		}
		// Oracle: there is one way to write a verifier.
		if got := v.String(); got != s {
			t.Fatalf("%q is written back as %q", s, got)
		}
		if v.Iterations < 1 || v.Iterations > MaxIterations || len(v.Salt) < 1 || len(v.Salt) > MaxSalt {
			t.Fatalf("%q is out of bounds: %d iterations, %d bytes of salt", s, v.Iterations, len(v.Salt))
		}
	})
}
