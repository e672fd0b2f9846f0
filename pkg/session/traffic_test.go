package session

import (
	"math/rand/v2"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// traffic makes up what a client sends: anything legal, errors included. It never asks what the server said, so it is
// always a pipeline; who delivers its messages late makes it a polite client.
type traffic struct {
	rng    *rand.Rand
	errors float64 // how likely a message fails
	syncs  float64 // how likely what is sent during a COPY is a Sync
	plan   []message
}

func newTraffic(rng *rand.Rand) *traffic {
	t := &traffic{rng: rng}
	if rng.IntN(3) > 0 {
		t.errors = rng.Float64() * 0.2
	}
	if rng.IntN(3) == 0 {
		t.syncs = rng.Float64()
	}
	return t
}

func (t *traffic) next() message {
	for len(t.plan) == 0 {
		t.more()
	}
	m := t.plan[0]
	t.plan = t.plan[1:]
	return m
}

func (t *traffic) add(m message) { t.plan = append(t.plan, m) }

func (t *traffic) chance(p float64) bool { return t.rng.Float64() < p }

func (t *traffic) statement() statement {
	for {
		s := statement(t.rng.IntN(int(statements)))
		if (s == boom || s == late || s == copyEarly || s == copyLate) && !t.chance(4*t.errors) {
			continue
		}
		return s
	}
}

// more plans one thing a client may want.
func (t *traffic) more() {
	switch t.rng.IntN(12) {
	case 0, 1, 2:
		t.query()
	case 3:
		t.add(message{typ: pgwire.FunctionCall, fails: t.chance(t.errors)})
	case 4:
		t.add(message{typ: pgwire.Sync})
	case 5:
		t.add(message{typ: pgwire.Flush})
	case 6:
		// What a client sends that has not seen yet that its COPY is over.
		t.add(message{typ: []byte{pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail}[t.rng.IntN(3)]})
	default:
		for range 1 + t.rng.IntN(4) {
			t.extended()
		}
		if t.chance(0.9) {
			t.add(message{typ: pgwire.Sync})
		}
	}
}

func (t *traffic) query() {
	m := message{typ: pgwire.Query, fails: t.chance(t.errors)}
	for range 1 + t.rng.IntN(3) {
		m.sql = append(m.sql, t.statement())
	}
	if len(m.sql) > 1 {
		// SQL that is empty in parts is not empty.
		for i, s := range m.sql {
			if s == empty {
				m.sql[i] = change
			}
		}
	}
	t.add(m)
	for _, s := range m.sql {
		if s.copiesIn() {
			t.copyData()
		}
	}
}

// extended is a part of a batch. Bind and Execute stay together, a portal does not outlive its transaction.
func (t *traffic) extended() {
	s := []statement{t.statement()}
	switch t.rng.IntN(4) {
	case 0:
		t.add(message{typ: pgwire.Parse, sql: s, fails: t.chance(t.errors)})
		return
	case 1:
		t.add(message{typ: pgwire.Close, fails: t.chance(t.errors)})
		return
	case 2:
		t.add(message{typ: pgwire.Describe, sql: s, part: true, fails: t.chance(t.errors)})
		return
	}
	t.add(message{typ: pgwire.Bind, sql: s, fails: t.chance(t.errors)})
	if t.chance(0.3) {
		t.add(message{typ: pgwire.Describe, sql: s, fails: t.chance(t.errors)})
	}
	if t.chance(0.2) {
		t.add(message{typ: pgwire.Flush})
	}
	t.add(message{typ: pgwire.Execute, sql: s, part: t.chance(0.3), fails: t.chance(t.errors)})
	if s[0].copiesIn() {
		t.copyData()
	}
}

func (t *traffic) copyData() {
	for t.chance(0.7) {
		switch {
		case t.chance(t.syncs):
			t.add(message{typ: pgwire.Sync})
		case t.chance(0.2):
			t.add(message{typ: pgwire.Flush})
		default:
			t.add(message{typ: pgwire.CopyData, fails: t.chance(t.errors)})
		}
	}
	if t.chance(0.2) {
		t.add(message{typ: pgwire.CopyFail})
	} else {
		t.add(message{typ: pgwire.CopyDone})
	}
}
