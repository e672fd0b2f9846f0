package proxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
)

// census knows what secrets look like here, so that a user who does not exist is asked for what others are asked for.
type census struct {
	set                *Settings // what the rest was counted of
	listed, dynamic    share
	iterations, recent int // of verifiers: most in the user list have, the latest of auth_query had; 0 is unknown
}

// share counts secrets by how they are proved when auth_type is md5.
type share struct{ md5, scram uint64 }

// of brings it up to date with the settings.
func (n *census) of(set *Settings) *census {
	if n.set == set {
		return n
	}
	n.set, n.listed, n.iterations = set, share{}, 0
	counts := map[int]int{}
	for _, s := range set.Users {
		n.listed.add(s)
		if i := iterationsOf(s); i > 0 {
			counts[i]++
			if most := counts[n.iterations]; counts[i] > most || counts[i] == most && i < n.iterations {
				n.iterations = i
			}
		}
	}
	return n
}

// saw counts a secret that auth_query has found.
func (n *census) saw(secret string) {
	n.dynamic.add(secret)
	if i := iterationsOf(secret); i > 0 {
		n.recent = i
	}
}

func (s *share) add(secret string) {
	switch {
	case secret == "":
	case isVerifier(secret):
		s.scram++
	default:
		s.md5++
	}
}

// mockSCRAM decides how a user who does not exist is asked: always the same way, and over all names in the proportion of
// those who do. Until anything is known that is SCRAM, what PostgreSQL stores by default.
func (n *census) mockSCRAM(key []byte, user string) bool {
	scram, all := n.listed.scram+n.dynamic.scram, n.listed.md5+n.dynamic.md5+n.listed.scram+n.dynamic.scram
	if all == 0 {
		return true
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte("method\x00" + user))
	point := binary.BigEndian.Uint32(h.Sum(nil))
	return float64(point) < float64(scram)/float64(all)*(1<<32)
}

// mockIterations are those of a verifier for a user who does not exist; otherwise are those of plain secrets.
func (n *census) mockIterations(otherwise int) int {
	switch {
	case n.recent > 0:
		return n.recent
	case n.iterations > 0:
		return n.iterations
	}
	return otherwise
}

// iterationsOf reads the count of a verifier without the cost of reading all of it; 0 when it is none.
func iterationsOf(secret string) int {
	if !isVerifier(secret) {
		return 0
	}
	_, rest, _ := strings.Cut(secret, "$")
	count, _, _ := strings.Cut(rest, ":")
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 1_000_000 {
		return 0
	}
	return n
}

func hexed(b []byte) []byte { return hex.AppendEncode(nil, b) }
