package scram

import (
	"crypto/md5"
	"encoding/hex"
	"strings"
)

// MD5 is the answer to AuthenticationMD5Password. The password may also be what a server stores, "md5" and 32 hex
// digits: with md5 the stored secret is as good as the password.
func MD5(user, password string, salt [4]byte) string {
	inner := password[min(len(password), len("md5")):]
	if !IsMD5(password) {
		sum := md5.Sum([]byte(password + user))
		inner = hex.EncodeToString(sum[:])
	}
	sum := md5.Sum(append([]byte(inner), salt[:]...))
	return "md5" + hex.EncodeToString(sum[:])
}

// IsMD5 tells whether a secret is in the form PostgreSQL stores md5 passwords in.
func IsMD5(secret string) bool {
	digits, ok := strings.CutPrefix(secret, "md5")
	return ok && len(digits) == 2*md5.Size && strings.Trim(digits, "0123456789abcdef") == ""
}
