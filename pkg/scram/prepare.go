package scram

import (
	"sort"
	"unicode/utf8"

	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"
)

// prepare is SASLprep (RFC 4013) as PostgreSQL applies it: ASCII passes unchanged, control characters included, and a
// password which may not be prepared is used as the bytes it is. (precis.OpaqueString is a later profile with other
// results: it keeps compatibility characters apart and refuses what SASLprep drops.)
func prepare(password string) string {
	if isASCII(password) || !utf8.ValidString(password) {
		return password
	}
	mapped := make([]rune, 0, len(password))
	for _, r := range password {
		switch {
		case contains(spaces, r):
			mapped = append(mapped, ' ')
		case contains(nothings, r):
		default:
			mapped = append(mapped, r)
		}
	}
	if len(mapped) == 0 || !permitted(mapped) {
		return password
	}
	return norm.NFKC.String(string(mapped))
}

// permitted looks for prohibited and unassigned code points and applies the rule for right-to-left text. Like
// PostgreSQL it looks at the text before normalization, where the RFC says after.
func permitted(text []rune) bool {
	rightToLeft, leftToRight := false, false
	for _, r := range text {
		if contains(refused, r) {
			return false
		}
		// Today's classes differ from Unicode 3.2's for nine letters and braille, none of them right-to-left.
		switch bidiClass(r) {
		case bidi.R, bidi.AL:
			rightToLeft = true
		case bidi.L:
			leftToRight = true
		}
	}
	if !rightToLeft {
		return true
	}
	first, last := bidiClass(text[0]), bidiClass(text[len(text)-1])
	return !leftToRight && (first == bidi.R || first == bidi.AL) && (last == bidi.R || last == bidi.AL)
}

func bidiClass(r rune) bidi.Class {
	p, _ := bidi.LookupRune(r)
	return p.Class()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func contains(table []span, r rune) bool {
	i := sort.Search(len(table), func(i int) bool { return table[i][1] >= r })
	return i < len(table) && table[i][0] <= r
}
