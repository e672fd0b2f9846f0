package scram

import (
	"crypto/sha256"
	"strings"
	"testing"
)

// What PostgreSQL 15 stored for CREATE ROLE … PASSWORD with password_encryption = scram-sha-256. Each shows one rule of
// its SASLprep.
var postgresVerifiers = []struct{ password, verifier string }{
	{"pencil", `SCRAM-SHA-256$4096:/RNxdDI3kHq6fcA5jIOJkQ==$EOWRiu1SdYYopay3CRhbRSxX0SMnUjV+pBQ0KOtzu8w=:XT6ShroEaKUHDGbQnD+3NyDbyGDdyX5K0sCPUyp3JpA=`},
	{"correct horse battery staple", `SCRAM-SHA-256$4096:F5SiLREuwpzRTiNJv/VNJw==$OgvNbKtJg80tKw4w2H6HyTMyxFzGCBCn++1LrD+xIRA=:rKtZfRVl46yaONWeddRl59mz2dkrMWPFttXf10DOIds=`},
	{" lead and trail ", `SCRAM-SHA-256$4096:UK1j/VMtfGYfKatRhRpTfQ==$7ZFr+drV41jah2nA00sVI4d0OY+mPjT7wb4O8Hhh8nc=:Z2QERKHrHSpwPhm3ZIi+smRv4/L2j/z6CJQrNs8Nn/g=`},
	{"quote'back\\slash,=comma", `SCRAM-SHA-256$4096:1egWdMOvnqlCj0FoT7bAsQ==$nTD9XjgnUDuVoRSVAHVpgz6LrZYiKk3X9deDSbp0GV0=:zI7ohw8mDuRNE13UPVnax/djMQ6kdEqGF2lcfV/OTC4=`},
	{"tab\tand\u007fdelete", `SCRAM-SHA-256$4096:EfoICqqxr2ciM2XG1XrPxA==$SK/eX42hrVkY5oKuLmh/IV98gObznTZfzxSJSJiPGjI=:XqfGvQJbXNb5Lwx2ZUKb/cmej5wWsOOmikdZP7kodnE=`},
	{"I\u00adX", `SCRAM-SHA-256$4096:YEaeTa1J9rq/Aa3yAok1Pg==$LfSHFNocuYl2ELEpWGumqyUTDa6LNkswJtJsATVEM5s=:ceeQ9koIUncHCwBZonihjFdm6XW8jbKiqiSj/nsMPpU=`},
	{"\u2168", `SCRAM-SHA-256$4096:ZGSWUqYcCAR05IyKWoaHcA==$rNRyh9JusffFRLSaPZPXXRCPl+DeI0oQRhmGwd4C2nQ=:0kmfhFEedNXMBSvNtwX4J2k3fzdCmWrRWvjQU1gTAYY=`},
	{"\u00aa", `SCRAM-SHA-256$4096:U2pRiuuYkPxGwNgj4ECT+A==$DXEtEz9MOQmDPyHS90iOv/jnR6gTJ4mEPIOadsxh+Yg=:Iqz2UGm5Fu1K8rfIx1KcZfFLUzlfGPCFhxAGvj9fNFg=`},
	{"user\u00a0name", `SCRAM-SHA-256$4096:uEGZQorcGElMcbx+d3XCTA==$4hDgXZsxzkTPiVmql9Zxc+nkYJClt/we7rqJB5U13yo=:c3VfKkDfxO5qm1nJ/7C7Mygp9TWIiOs97J45zegAYRI=`},
	{"\ufb01ne", `SCRAM-SHA-256$4096:JBma4TeZeej9CISIN/XGFQ==$BF1OVmlhwG+BkZ9hg4gcbWZKgd2ot+TkeuNVQIcgwe0=:pA+vIFJ7dobPAsb2y9MYnidY39LHVsN1XrvxbwekrZA=`},
	{"a\u2003b", `SCRAM-SHA-256$4096:u8h/pv96cFVE5XjUETUzZQ==$Qi7d6gevuzclpdfBWVUXAfS0WHY8AmlpDlijto1NQ/Y=:0v6qdzAdiNm3AgQX66AT0zf6w+1iAyVPcWHvYf/JTso=`},
	{"e\u0301", `SCRAM-SHA-256$4096:eSGFL+AWObTpoJtgNjELrA==$hUZJA9M9Q78zlzhTIMluxABk/fNihWL0791pjtlYf8c=:rGYerOwBrct5hxUX5crcROYj9HYHmkD3hUyOd9oO1s0=`},
	{"\u00e9", `SCRAM-SHA-256$4096:vj/iAd4ESKsfLP8Ic6bzCQ==$ygp0vmTcc32S4ks2pLpKJ5LaZ2eXOAKiS5luicP91hc=:ctMPFOcUQNDFPzK962a1a7z9IglQqQe9qfRh94lo0wc=`},
	{"gr\u00fc\u00df", `SCRAM-SHA-256$4096:NbExWOHlx1tF0IkpZcYeyQ==$pLXGRNkT2ZwnylfezkNMPFZZC4UojswnZfAbwKDj6BU=:1wJR82UX30IAyj9nx/6LkS3yM+97k0H+5b2JwUl4P5w=`},
	{"\u5bc6\u7801", `SCRAM-SHA-256$4096:yaggXHp2xcLBe7pTT8BOqQ==$2Mfni3HAjN9s37o7LtsQ/klUqMt9C60VF2+uSMtaOKU=:rXzorcmdDR9xJfwPm0jjdpclBcGFQjwY37/rFjBIWzc=`},
	{"\ud55c\uae00", `SCRAM-SHA-256$4096:H3nsLh3PnxU7qOdTW8TKeQ==$j+tKNskQf+yjpPlgR5Z3hMZl9tBoT/imLoAjQ/341YA=:sepFpFODnbVCnnU17Bb6nqvBwRPeivRS7ghXuW0YfMw=`},
	{"\U0001f511 key", `SCRAM-SHA-256$4096:eMSw4bX8lRu3HSoKJWt/Gg==$4O2bA3nsG63ky+faoR0Mysb8Bfz9+C/tBzpK/AW53/Y=:3Hl5lCug1lINiv3LSFPXQVaeaSxK7zGWneMb4XgUCuI=`},
	{"\u06271", `SCRAM-SHA-256$4096:xL2oVNd3sdreIwaxzQFTkQ==$F44jiTXD/A+I/bQfH4TbglwtdkF93b4rzV76pqffZH8=:m32I3MTAuu0XlZofUaqNUvonHVpI0RHtXuoqDWw8i74=`},
	{"\u06271\u0628", `SCRAM-SHA-256$4096:5BJjEn3vrH30QybPC0ScvQ==$mm252Z2hQ8FPqUSiWHabaBAtnXrVn3YOGJFQOGw1NA0=:Xx1MH0gDaWK9WFXOwnIikMOmrVv7aHYqLckikrmcEJA=`},
	{"\u0627a\u0628", `SCRAM-SHA-256$4096:lwqwxZZbVk14bzkpMed5zQ==$jJ6nxh9+Vgf/U2rgeX7I7QZSYWLzn+t0LJylvufAEXo=:UJgONUeBrIkdchAkl0CiamC68UQ3dQzuyiKtpOIzmyw=`},
	{"\u05d0\u05d1", `SCRAM-SHA-256$4096:I4nZC5lhBJ/so4WYwUyS4A==$Mk3MiTJFiGsW16BB9j7BD3xbXdBNf0BeSV7W95miNGo=:iHLsteeaznvXk+RDxDGJgunQhAAea2E2BfuDeeMvecw=`},
	{"\u00ad", `SCRAM-SHA-256$4096:AMiGMMTqgUbAoeJ3qeFZbg==$sfB/kiPEZ9dECD5ZqH709N9ND9P7c+q+mCf/lhTab1M=:J48BorqX8HwUU9ZKLWl6c6EKmzyVb0ghXBXaQ6jPA6Y=`},
	{"zero\u200bwidth", `SCRAM-SHA-256$4096:EzrSriYQnXUOaO7sR54RSw==$TanaYKY8qIMFlincBgP4ca/qRX382pFND+zlmKhlv7I=:VD9ju3LrnKJNpjBTTZCXf0U/78DIs5+vL01TDIa/MiM=`},
	{"\u0221x", `SCRAM-SHA-256$4096:Lgcr7ek3wbWux71moa+Thg==$Lc+V6LOHwdBOvb+RyDiHxpW+u1lfmxSQdh5J5BQygUk=:2bDw49ZvvczBV6/ckn1pBjHeEvoK80WQ346SnGjI77A=`},
	{"\u3000", `SCRAM-SHA-256$4096:NgVaJxyHjcbEATgKLPFxVw==$8tvV/sHN6XOaw2RV7/EAzC79/AClxPlvkBrxI9Hcsgw=:lhgnUqdlnbGGfqOw5Jy/alkuZbnhedxId+BXVdOjJXU=`},
	{"\ufb01\U0001f600", `SCRAM-SHA-256$4096:GnrCKj4bwAS0cDIA7oHO0Q==$bR1gNxmdAirNn4UhR8s4UOOAjlhv2TRNrXkAT0LHXKg=:HxASKkGoOtcjjWOGF1OJG4i0iCOiXTROV2PngwY/ct4=`},
	{"\u212b\u2126", `SCRAM-SHA-256$4096:8gf4TY2bnTZzIgk/0QP8yg==$xF6wYrxEc2DwCiIXUCHBYbkn5Diob4fmfFHWCYrNsXk=:ICKzh22JFGEGi8vxzthF7IyyWy0I6twvqxIPu8+nGN8=`},
	{"\u0340", `SCRAM-SHA-256$4096:EX5FcnLOCvlPrKqBmTE2ag==$kZVq3dbPsSl8zjlbGGd1/qHYLAKWQ91Qp+GyCsZGL08=:ZPTRxqnpd5nBM3cxrr0CIzYHeStn/p8lE2RmwCHCL4A=`},
	{strings.Repeat("x", 300), `SCRAM-SHA-256$4096:oEzoIDDcUIzFuYKisAk9Rw==$VYNoAfuV7hHWZQXyi7N1dbixap+nyTAR4//Yyebajlk=:k2chCJqn0HNzQ8Etjgf/KJ04COR0fzCgRaCtNyXnLyY=`},
	{"\u2800\u05d0\u05d1", `SCRAM-SHA-256$4096:dJa47AFsgtmIhWIcKe2V2A==$C1Ds8hPXQwT6warxOasr/XP4tPLg8FRVrKxaI48eIkM=:Pr1Y9ggtYlF/O8A/HRYS/CUB1SOKo1Htl9Kb7MhBkH8=`},
	{"\u05d0\u0cbf\u05d1", `SCRAM-SHA-256$4096:N9n8GWesWBg0GEM+KPVANw==$Upjmt0s0Gl/Khop246qlxBjktL668b7EtaQi3WAnLww=:YKtkgR3YpKKobg2lXzlMBQXsDqFqSxOUdEfYTPCEMrc=`},
	{"\uff21\uff22", `SCRAM-SHA-256$4096:w7RJKGtefIdehrL574C/nQ==$co8rXOtC8zQ78evbxYvSJvaMNrteuPVn7o2nqL1OgKE=:JPbNcnDMAKuOk02oPdDPrJEcc4AIsmlBwf71lIutSUE=`},
}

func TestVerifiersStoredByPostgreSQLAreReproducedFromThePassword(t *testing.T) {
	for _, c := range postgresVerifiers {
		v, err := ParseVerifier(c.verifier)
		if err != nil {
			t.Errorf("%+q: %v", c.password, err)
			continue
		}
		if got := v.String(); got != c.verifier {
			t.Errorf("%+q: verifier %s is written back as %s", c.password, c.verifier, got)
		}
		if got := NewVerifier(c.password, v.Salt, v.Iterations).String(); got != c.verifier {
			t.Errorf("%+q gives %s, PostgreSQL stored %s", c.password, got, c.verifier)
		}
	}
}

func TestPasswordsThatAreNotUTF8AreUsedAsBytes(t *testing.T) {
	for _, p := range []string{"\xff", "caf\xe9", "\xed\xa0\x80", "\u2168\xff"} {
		if got := prepare(p); got != p {
			t.Errorf("%+q was prepared to %+q", p, got)
		}
	}
}

// The dialogue of RFC 7677, section 3. Its nonces are no base64, so they are put in by hand.
const (
	rfcNonce       = "rOprNGfwEbeRWgbNEkqO"
	rfcServerNonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	rfcClientFirst = "n,,n=user,r=" + rfcNonce
	rfcServerFirst = "r=" + rfcNonce + rfcServerNonce + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	rfcClientFinal = "c=biws,r=" + rfcNonce + rfcServerNonce + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	rfcServerFinal = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func rfcClient() *Client {
	return &Client{password: "pencil", nonce: rfcNonce, bare: "n=user,r=" + rfcNonce}
}

var rfcKeys = func() Keys {
	salt, _ := decode64("W22ZaJ0SNY7soEsUEjb6gQ==")
	return derive("pencil", salt, 4096)
}()

func rfcServer() *Server {
	v := Verifier{Iterations: 4096, Salt: rfcKeys.Salt, StoredKey: sha256.Sum256(rfcKeys.ClientKey[:]), ServerKey: rfcKeys.ServerKey}
	return &Server{verifier: v, nonce: rfcServerNonce}
}

func TestTheClientSpeaksTheDialogueOfRFC7677(t *testing.T) {
	c := rfcClient()
	if got := string(c.First()); got != rfcClientFirst {
		t.Errorf("client-first-message is %q, want %q", got, rfcClientFirst)
	}
	final, err := c.Challenge([]byte(rfcServerFirst))
	if err != nil || string(final) != rfcClientFinal {
		t.Fatalf("client-final-message is %q, %v, want %q", final, err, rfcClientFinal)
	}
	if err := c.Verify([]byte(rfcServerFinal)); err != nil {
		t.Fatalf("server-final-message is refused: %v", err)
	}
}

// A client that binds says so first, and what it is bound to last; the rest is the same dialogue.
func TestTheClientSaysWhatItIsBoundTo(t *testing.T) {
	hash := []byte("the hash of a certificate")
	for name, c := range map[string]struct {
		bind   func(*Client)
		header string
		data   string
	}{
		"to a server's certificate": {func(c *Client) { c.BindServerEndPoint(hash) }, "p=tls-server-end-point,,", string(hash)},
		"to nothing it was offered": {(*Client).BindingNotOffered, "y,,", ""},
		"to nothing it could be":    {func(*Client) {}, "n,,", ""},
	} {
		client := rfcClient()
		c.bind(client)
		if got, want := string(client.First()), c.header+strings.TrimPrefix(rfcClientFirst, "n,,"); got != want {
			t.Errorf("%s: client-first-message is %q, want %q", name, got, want)
		}
		final, err := client.Challenge([]byte(rfcServerFirst))
		if want := "c=" + encode64([]byte(c.header+c.data)) + ",r="; err != nil || !strings.HasPrefix(string(final), want) {
			t.Errorf("%s: client-final-message is %q, %v, want it to begin with %q", name, final, err, want)
		}
	}
}

func TestTheServerSpeaksTheDialogueOfRFC7677(t *testing.T) {
	s := rfcServer()
	first, err := s.First([]byte(rfcClientFirst))
	if err != nil || string(first) != rfcServerFirst {
		t.Fatalf("server-first-message is %q, %v, want %q", first, err, rfcServerFirst)
	}
	final, err := s.Final([]byte(rfcClientFinal))
	if err != nil || string(final) != rfcServerFinal {
		t.Fatalf("server-final-message is %q, %v, want %q", final, err, rfcServerFinal)
	}
}

func TestTheServerReadsTheFirstMessageOfRFC5802(t *testing.T) {
	s := NewServer(MockVerifier([]byte("secret"), "user", 4096), []byte("123"))
	first, err := s.First([]byte("n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL"))
	if err != nil || !strings.HasPrefix(string(first), "r=fyko+d2lbbFgONRv9qkxdawLMTIz,s=") {
		t.Fatalf("server-first-message is %q, %v", first, err)
	}
}

func TestMD5AnswersAsLibpqDoes(t *testing.T) {
	const stored = "md58bbf3f45673bf67d02e4214911f3417f" // PostgreSQL's, role m, password pencil
	salt := [4]byte{1, 2, 3, 4}
	plain, hashed := MD5("m", "pencil", salt), MD5("m", stored, salt)
	// printf '%s\001\002\003\004' 8bbf3f45673bf67d02e4214911f3417f | md5sum
	const want = "md5b102d64f0a7f8aa6cc98d60d13b48b72"
	if plain != want || hashed != want {
		t.Errorf("password gives %s, stored secret gives %s, want %s", plain, hashed, want)
	}
	if lookalike := "md5" + strings.Repeat("X", 32); IsMD5(lookalike) || IsMD5("md5") || IsMD5(stored+"0") {
		t.Error("a password that begins with md5 counts as a stored secret")
	}
}
