//go:build !race && !invariants

package eventloop

const scribbles = false
