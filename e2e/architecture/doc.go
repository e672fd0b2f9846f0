// Package architecture checks, as tests, what the repository promises about its own shape: who may import whom and
// why, where goroutines, clocks and exits are allowed, and how the tree is laid out.
//
// It refuses to hold code of the product, and it knows nothing of what the packages do: only names and syntax.
package architecture
