package pool

// Visit has c use p like a client without being one: it counts in no limit on clients, because it works for somebody who
// is counted elsewhere. Backends it uses count as ever. Disconnect ends it.
func (ps *Pools) Visit(now Time, p *Pool, c *Client) error {
	if c.pool != nil {
		panic("pool: Visit by a client that is connected already")
	}
	if p.retired {
		return ErrRemoved
	}
	c.pool, c.guest = p, true
	p.clients++ // so that p is not forgotten
	if p.clients == 1 && p.settings.MinSize > 0 {
		ps.changed(now, p)
		ps.plan(now, nil)
	}
	return nil
}
