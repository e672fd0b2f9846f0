package pgwire

import (
	"strings"
	"testing"
)

func TestErrorRoutineTakesWhatIsThere(t *testing.T) {
	for body, want := range map[string]string{
		"SFATAL\x00C53300\x00Mno\x00Fpostinit.c\x00L7\x00RCheckMyDatabase\x00\x00": "CheckMyDatabase",
		"SFATAL\x00MRx\x00\x00":      "",
		"Rbefore\x00MRafter\x00\x00": "before",
		"SFATAL\x00RInitPro":         "",
		"SFATAL\x00\x00Rbehind\x00":  "",
		"R\x00":                      "",
		"R":                          "",
		"":                           "",
	} {
		if got := ErrorRoutine([]byte(body)); got != want {
			t.Errorf("%q: got %q, want %q", body, got, want)
		}
	}
}

func FuzzErrorRoutine(f *testing.F) {
	f.Add([]byte("SFATAL\x00C53300\x00RInitProcess\x00\x00"))
	f.Add([]byte("R"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := ErrorRoutine(body)
		if strings.Contains(got, "\x00") || got != "" && !strings.Contains(string(body), "R"+got+"\x00") {
			t.Errorf("got %q of %q", got, body)
		}
	})
}
