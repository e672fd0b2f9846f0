package scram

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Every hostile input of these tables gets exactly one sentence, and the exchange is over.

func TestHostileClientFirstMessages(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	cases := []struct{ attack, msg, want string }{
		{"nothing at all", "", "it must begin with the channel binding flag n or y and a comma"},
		{"only a flag", "n", "it must begin with the channel binding flag n or y and a comma"},
		{"unknown flag", "x,,n=,r=abc", "it must begin with the channel binding flag n or y and a comma"},
		{"header cut off", "n,", "it ends too early"},
		{"nothing after the header", "n,,", "attribute expected, a letter followed by '='"},
		{"channel binding demanded", "p=tls-server-end-point,,n=,r=abc", "channel binding was not offered, the client must not require it"},
		{"channel binding of an unknown kind", "p=,,n=,r=abc", "channel binding was not offered, the client must not require it"},
		{"authorization identity", "n,a=postgres,n=,r=abc", "an authorization identity is not supported"},
		{"mandatory extension", "n,,m=x,n=,r=abc", "the mandatory extension m= is not supported"},
		{"mandatory extension at the end", "n,,n=,r=abc,m=x", "attribute m= is repeated or out of place"},
		{"user name missing", "n,,r=abc", `attribute n= expected, "r" found`},
		{"nonce missing", "n,,n=", "it ends too early"},
		{"nonce empty", "n,,n=,r=", "the nonce is empty"},
		{"nonce before the user name", "n,,r=abc,n=", `attribute n= expected, "r" found`},
		{"nonce given twice", "n,,n=,r=abc,r=def", "attribute r= is repeated or out of place"},
		{"nonce one byte too long", "n,,n=,r=" + long[:MaxNonce+1], "the nonce has 257 bytes, at most 256 are allowed"},
		{"nonce with a space", "n,,n=,r=a b", "the nonce may only hold printable ASCII characters without the comma"},
		{"nonce with a control character", "n,,n=,r=a\nb", "the nonce may only hold printable ASCII characters without the comma"},
		{"nonce beyond ASCII", "n,,n=,r=\u00fc", "the nonce may only hold printable ASCII characters without the comma"},
		{"user name of 100,000 bytes", "n,,n=" + long + ",r=abc", "it has 100011 bytes, at most 4096 are allowed"},
		{"not UTF-8", "n,,n=\xff,r=abc", "it is not UTF-8"},
		{"NUL in the user name", "n,,n=a\x00b,r=abc", "it contains a NUL byte"},
		{"NUL at the end", "n,,n=,r=abc\x00", "it contains a NUL byte"},
		{"attribute without a value sign", "n,,n,r=abc", "attribute expected, a letter followed by '='"},
		{"attribute named by a digit", "n,,n=,r=abc,1=x", "attribute expected, a letter followed by '='"},
		{"trailing comma", "n,,n=,r=abc,", "attribute expected, a letter followed by '='"},
	}
	for _, c := range cases {
		s := rfcServer()
		_, err := s.First([]byte(c.msg))
		expectRefusal(t, c.attack, err, "malformed SCRAM client-first-message: "+c.want)
		if _, err := s.Final([]byte(rfcClientFinal)); err == nil {
			t.Errorf("%s: the exchange went on", c.attack)
		}
	}
}

func TestClientFirstMessagesThatMustBeAccepted(t *testing.T) {
	for name, msg := range map[string]string{
		"client supports channel binding, server does not": "y,,n=,r=abc",
		"a user name nobody looks at":                      "n,,n=some=2Cbody,r=abc",
		"an optional extension":                            "n,,n=,r=abc,x=1,y=",
		"the longest nonce":                                "n,,n=,r=" + strings.Repeat("x", MaxNonce),
	} {
		if _, err := rfcServer().First([]byte(msg)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileClientFinalMessages(t *testing.T) {
	const nonce = "r=" + rfcNonce + rfcServerNonce
	const proof = ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	cases := []struct{ attack, msg, want string }{
		{"nothing at all", "", "attribute p= is missing"},
		{"proof missing", "c=biws," + nonce, "attribute p= is missing"},
		{"proof empty", "c=biws," + nonce + ",p=", "the proof must be base64 of 32 bytes and come last"},
		{"proof too short", "c=biws," + nonce + ",p=AAAA", "the proof must be base64 of 32 bytes and come last"},
		{"proof too long", "c=biws," + nonce + proof + "AAAA", "the proof must be base64 of 32 bytes and come last"},
		{"proof of 33 bytes in 44 characters", "c=biws," + nonce + ",p=" + strings.Repeat("A", 44), "the proof must be base64 of 32 bytes and come last"},
		{"proof with line breaks in it", "c=biws," + nonce + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7And\n\n\n", "the proof must be base64 of 32 bytes and come last"},
		{"proof with dirty padding bits", "c=biws," + nonce + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVR=", "the proof must be base64 of 32 bytes and come last"},
		{"something after the proof", "c=biws," + nonce + proof + ",x=1", "the proof must be base64 of 32 bytes and come last"},
		{"proof given twice", "c=biws," + nonce + proof + proof, "attribute p= is repeated or out of place"},
		{"channel binding missing", nonce + proof, `attribute c= expected, "r" found`},
		{"channel binding flag turned to y", "c=eSws," + nonce + proof, "its channel binding differs from the client-first-message"},
		{"channel binding data sneaked in", "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws," + nonce + proof, "its channel binding differs from the client-first-message"},
		{"channel binding not base64", "c=!!!!," + nonce + proof, "its channel binding differs from the client-first-message"},
		{"nonce missing", "c=biws" + proof, "it ends too early"},
		{"only the client's nonce", "c=biws,r=" + rfcNonce + proof, "its nonce is not the one agreed on"},
		{"nonce of another exchange", "c=biws," + nonce + "x" + proof, "its nonce is not the one agreed on"},
		{"order turned round", nonce + ",c=biws" + proof, `attribute c= expected, "r" found`},
		{"mandatory extension", "m=x,c=biws," + nonce + proof, "the mandatory extension m= is not supported"},
		{"message too long", "c=biws," + nonce + ",x=" + strings.Repeat("x", MaxMessage) + proof, fmt.Sprintf("it has %d bytes, at most 4096 are allowed", MaxMessage+len("c=biws,"+nonce+",x="+proof))},
		{"not UTF-8", "c=biws," + nonce + ",x=\xc3\x28" + proof, "it is not UTF-8"},
		{"NUL at the end", "c=biws," + nonce + proof + "\x00", "it contains a NUL byte"},
	}
	for _, c := range cases {
		s := rfcServer()
		if _, err := s.First([]byte(rfcClientFirst)); err != nil {
			t.Fatal(err)
		}
		_, err := s.Final([]byte(c.msg))
		expectRefusal(t, c.attack, err, "malformed SCRAM client-final-message: "+c.want)
		mustPanic(t, c.attack+": ClientKey", func() { s.ClientKey() })
	}
}

func TestAProofReplayedInAnotherExchangeIsErrProof(t *testing.T) {
	replayed := rfcServer()
	// Same nonces, other message: the proof does not cover it.
	if _, err := replayed.First([]byte("n,,n=someone,r=" + rfcNonce)); err != nil {
		t.Fatal(err)
	}
	if _, err := replayed.Final([]byte(rfcClientFinal)); !errors.Is(err, ErrProof) {
		t.Fatalf("got %v", err)
	}
}

// CVE-2026-6665
func TestHostileServerFirstMessages(t *testing.T) {
	const nonce = "r=" + rfcNonce + rfcServerNonce
	long := strings.Repeat("x", 100_000)
	badSalt := "the salt must be base64 of 1 to 256 bytes"
	badCount := "the iteration count must be a number from 1 to 1000000"
	cases := []struct{ attack, msg, want string }{
		{"nothing at all", "", "attribute expected, a letter followed by '='"},
		{"nonce missing", "s=QQ==,i=4096", `attribute r= expected, "s" found`},
		{"nonce not extended", "r=" + rfcNonce + ",s=QQ==,i=4096", "the nonce is empty"},
		{"another client's nonce", "r=x" + rfcNonce + ",s=QQ==,i=4096", "its nonce does not begin with the client's"},
		{"nonce of 3,000 bytes", nonce + long[:3000] + ",s=QQ==,i=4096", "the nonce has 3030 bytes, at most 256 are allowed"},
		{"nonce of 100,000 bytes", nonce + long + ",s=QQ==,i=4096", "it has 100066 bytes, at most 4096 are allowed"},
		{"nonce with a NUL", nonce + "\x00,s=QQ==,i=4096", "it contains a NUL byte"},
		{"nonce with a space", nonce + " ,s=QQ==,i=4096", "the nonce may only hold printable ASCII characters without the comma"},
		{"salt missing", nonce + ",i=4096", `attribute s= expected, "i" found`},
		{"salt empty", nonce + ",s=,i=4096", badSalt},
		{"salt not base64", nonce + ",s=???,i=4096", badSalt},
		{"salt with a line break", nonce + ",s=QQ=\n=,i=4096", badSalt},
		{"salt of 258 bytes", nonce + ",s=" + strings.Repeat("A", 344) + ",i=4096", badSalt},
		{"iteration count missing", nonce + ",s=QQ==", "it ends too early"},
		{"no iterations", nonce + ",s=QQ==,i=0", badCount},
		{"negative iterations", nonce + ",s=QQ==,i=-1", badCount},
		{"iterations with a sign", nonce + ",s=QQ==,i=+4096", badCount},
		{"iterations with leading zeros", nonce + ",s=QQ==,i=004096", badCount},
		{"one iteration too many", nonce + ",s=QQ==,i=1000001", badCount},
		{"iterations that would take hours", nonce + ",s=QQ==,i=2147483647", badCount},
		{"iterations that overflow", nonce + ",s=QQ==,i=18446744073709551617", badCount},
		{"iterations in other digits", nonce + ",s=QQ==,i=\u0661", badCount},
		{"mandatory extension", "m=x," + nonce + ",s=QQ==,i=4096", "the mandatory extension m= is not supported"},
		{"order turned round", "i=4096,s=QQ==," + nonce, `attribute r= expected, "i" found`},
		{"nonce given twice", nonce + "," + nonce + ",s=QQ==,i=4096", `attribute s= expected, "r" found`},
		{"garbage at the end", nonce + ",s=QQ==,i=4096,x=1", "nothing may follow its last attribute"},
		{"trailing comma", nonce + ",s=QQ==,i=4096,", "nothing may follow its last attribute"},
		{"not UTF-8", "\xfe\xff", "it is not UTF-8"},
	}
	for _, c := range cases {
		client := rfcClient()
		client.First()
		_, err := client.Challenge([]byte(c.msg))
		expectRefusal(t, c.attack, err, "malformed SCRAM server-first-message: "+c.want)
	}
}

func TestHostileServerFinalMessages(t *testing.T) {
	const m = "malformed SCRAM server-final-message: "
	badSignature := m + "the signature must be base64 of 32 bytes"
	cases := []struct{ attack, msg, want string }{
		{"nothing at all", "", m + "attribute expected, a letter followed by '='"},
		{"signature empty", "v=", badSignature},
		{"signature too short", "v=AAAA", badSignature},
		{"signature of 33 bytes", "v=" + strings.Repeat("A", 44), badSignature},
		{"signature not base64", "v=" + strings.Repeat("!", 44), badSignature},
		{"somebody else's signature", "v=" + strings.Repeat("A", 43) + "=", ErrServerProof.Error()},
		{"the client's own proof sent back", "v=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", ErrServerProof.Error()},
		{"something after the signature", rfcServerFinal + ",x=1", m + "nothing may follow its last attribute"},
		{"signature under another name", "w" + rfcServerFinal[1:], m + `attribute v= expected, "w" found`},
		{"an error", "e=invalid-proof", `the server refused the SCRAM exchange: "invalid-proof"`},
		{"an error meant for a terminal", "e=\x1b[2J", `the server refused the SCRAM exchange: "\x1b[2J"`},
		{"an error without end", "e=" + strings.Repeat("x", 4000), `the server refused the SCRAM exchange: "` + strings.Repeat("x", 60) + `"`},
		{"message too long", "v=" + strings.Repeat("A", 5000), m + "it has 5002 bytes, at most 4096 are allowed"},
		{"NUL at the end", rfcServerFinal + "\x00", m + "it contains a NUL byte"},
	}
	for _, c := range cases {
		client := rfcClient()
		client.First()
		if _, err := client.Challenge([]byte(rfcServerFirst)); err != nil {
			t.Fatal(err)
		}
		expectRefusal(t, c.attack, client.Verify([]byte(c.msg)), c.want)
		mustPanic(t, c.attack+": Keys", func() { client.Keys() })
	}
}

func TestHostileVerifiers(t *testing.T) {
	const keys = "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	form := "SCRAM verifier must have the form SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>"
	count := "SCRAM verifier: the iteration count must be a number from 1 to 1000000"
	salt := "SCRAM verifier: the salt must be base64 of 1 to 256 bytes"
	cases := []struct{ attack, verifier, want string }{
		{"nothing at all", "", "SCRAM verifier does not begin with SCRAM-SHA-256$"},
		{"another mechanism", "SCRAM-SHA-1$4096:QQ==" + keys, "SCRAM verifier does not begin with SCRAM-SHA-256$"},
		{"only the name", "SCRAM-SHA-256$", form},
		{"keys missing", "SCRAM-SHA-256$4096:QQ==", form},
		{"server key missing", "SCRAM-SHA-256$4096:QQ==$AAAA", form},
		{"salt missing", "SCRAM-SHA-256$4096" + keys, form},
		{"salt empty", "SCRAM-SHA-256$4096:" + keys, salt},
		{"salt too long", "SCRAM-SHA-256$4096:" + strings.Repeat("A", 344) + keys, salt},
		{"no iterations", "SCRAM-SHA-256$0:QQ==" + keys, count},
		{"iterations that overflow", "SCRAM-SHA-256$99999999999999999999:QQ==" + keys, count},
		{"stored key too short", "SCRAM-SHA-256$4096:QQ==$AAAA:AAAA", "SCRAM verifier: the StoredKey must be base64 of 32 bytes"},
		{"server key too long", "SCRAM-SHA-256$4096:QQ==" + keys + "AAAA", "SCRAM verifier: the ServerKey must be base64 of 32 bytes"},
		{"line break at the end", "SCRAM-SHA-256$4096:QQ==" + keys + "\n", "SCRAM verifier: the ServerKey must be base64 of 32 bytes"},
	}
	if _, err := ParseVerifier("SCRAM-SHA-256$4096:QQ==" + keys); err != nil {
		t.Fatalf("the sample that the attacks are made from is no verifier: %v", err)
	}
	for _, c := range cases {
		_, err := ParseVerifier(c.verifier)
		expectRefusal(t, c.attack, err, c.want)
	}
}

func expectRefusal(t *testing.T, attack string, err error, want string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: accepted, want %q", attack, want)
	} else if err.Error() != want {
		t.Errorf("%s: refused with %q, want %q", attack, err, want)
	}
}
