package pool

// Probe starts an attempt that no waiter asked for, to try something on it; nil when p's size or a shared limit does not
// leave room for it and spare backends more, or when back-pressure forbids it. There is no Open effect; answer with Opened or OpenFailed.
func (ps *Pools) Probe(now Time, p *Pool, spare int) *Backend {
	if p.retired || p.heldBack() {
		return nil
	}
	if size := p.settings.Size; size > 0 && p.held+spare >= size {
		return nil
	}
	for _, l := range p.limits {
		if l.bounded() && l.room() <= spare {
			return nil
		}
	}
	b := ps.start(now, p)
	ps.changed(now, p)
	ps.plan(now, nil) // it serves a waiter when it succeeds, so p may need less than it is promised
	return b
}

// Refused says that an attempt of Probe is over, that it holds no slot, and that why it failed is the prober's affair: the
// pool's own attempts are not put off, and nobody who waits fails.
func (ps *Pools) Refused(now Time, b *Backend) {
	if b.state == Closing {
		ps.Closed(now, b)
		return
	}
	b.must("Refused", Opening)
	p := b.pool
	p.served.failures++
	ps.forgetBackend(b)
	ps.changed(now, p)
	ps.vanish(p)
	ps.plan(now, nil)
}
