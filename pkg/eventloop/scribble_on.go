//go:build race || invariants

package eventloop

// scribble makes a use after return visible in test builds.
func scribble(b []byte) {
	for i := range b {
		b[i] = 0xCC
	}
}
