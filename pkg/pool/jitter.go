package pool

import "time"

// splitmix64 is the finalizer of the generator of that name: one number in, one well mixed number out.
func splitmix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// poolSeed mixes the seed and the key, so that pools do not move in step and the order of calls plays no part.
func poolSeed(seed uint64, k Key) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for _, s := range [...]string{k.Database, "\x00", k.User} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	return splitmix64(seed ^ h)
}

// spread returns d with jitter of up to a fifth either way, the n-th number of the seed's sequence.
func spread(d time.Duration, seed, n uint64) time.Duration {
	const steps = 10_000
	if d > Never/2 {
		return d
	}
	return d + d/steps*(time.Duration(splitmix64(seed+n)%(2*steps/5+1))-steps/5)
}
