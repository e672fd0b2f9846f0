package proxy

import (
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func uses(name string, describes bool) []pgproto3.FrontendMessage {
	m := []pgproto3.FrontendMessage{&pgproto3.Bind{PreparedStatement: name}}
	if describes {
		m = append(m, &pgproto3.Describe{ObjectType: 'P'})
	}
	return append(m, &pgproto3.Execute{}, &pgproto3.Sync{})
}

// S26, M12
func TestAStatementWhoseResultHasChangedIsPreparedAgain(t *testing.T) {
	p := statePooler(t, 1, nil)
	admin := p.call()
	admin.must("drop table if exists shaped; create table shaped as select 1 as a")
	defer admin.must("drop table shaped")
	type variant struct{ toldBefore, asks, inTransaction, repaired bool }
	for name, v := range map[string]variant{
		"who asks in the batch":         {toldBefore: true, asks: true, repaired: true},
		"who was never told":            {repaired: true},
		"who was told and does not ask": {toldBefore: true},
		"in a transaction":              {asks: true, inTransaction: true},
	} {
		t.Run(name, func(t *testing.T) {
			admin.must("alter table shaped drop column if exists b")
			admin.must("discard all")
			a, b := p.call(), p.call()
			for _, c := range []*caller{a, b} {
				c.send(&pgproto3.Parse{Name: "s", Query: "select * from shaped"})
				if v.toldBefore {
					c.send(&pgproto3.Describe{ObjectType: 'S', Name: "s"})
				}
				c.send(uses("s", false)...)
				if r := c.reply(); r.err != nil || r.value(0) != "1" {
					t.Fatalf("got %+v", r)
				}
			}
			admin.must("alter table shaped add column b int default 2")
			if v.inTransaction {
				a.must("begin")
			}
			a.send(uses("s", v.asks)...)
			r := a.reply()
			if v.repaired {
				if r.err != nil || len(r.rows) != 1 || len(r.rows[0]) != 2 {
					t.Errorf("got %+v", r)
				}
			} else if r.err == nil || r.err.Code != "0A000" {
				t.Errorf("got %+v", r)
			}
			if v.inTransaction {
				a.must("rollback")
			}
			// In any case it works from now on, for everybody.
			for _, c := range []*caller{a, b} {
				c.send(uses("s", true)...)
				if r := c.reply(); r.err != nil || len(r.rows[0]) != 2 {
					t.Errorf("afterwards: %+v", r)
				}
			}
			if n := p.state().Pools[0].Stats.Idle; n != 1 {
				t.Errorf("%d idle connections", n)
			}
		})
	}
}

// S26
func TestABatchIsNotSaidAgainWhenSomethingIsBehindIt(t *testing.T) {
	p := statePooler(t, 1, nil)
	a := p.call()
	a.must("drop table if exists shaped; create table shaped as select 1 as a")
	defer a.must("drop table shaped")
	a.send(&pgproto3.Parse{Name: "s", Query: "select * from shaped"})
	a.send(uses("s", true)...)
	a.reply()
	a.must("alter table shaped add column b int default 2")
	a.send(append(uses("s", true), uses("s", true)...)...)
	if r := a.reply(); r.err == nil || r.err.Code != "0A000" {
		t.Errorf("got %+v", r)
	}
	a.reply()
	a.send(uses("s", true)...)
	if r := a.reply(); r.err != nil || len(r.rows[0]) != 2 {
		t.Errorf("afterwards: %+v", r)
	}
}
