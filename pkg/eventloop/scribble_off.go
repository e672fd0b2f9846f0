//go:build !race && !invariants

package eventloop

func scribble([]byte) {}
