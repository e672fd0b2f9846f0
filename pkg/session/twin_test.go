package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// run is one server connection: a Link, its twin, and what is on the wire between them.
type run struct {
	rng     *rand.Rand
	link    Link
	twin    *backend
	resume  func() (answer, bool)
	waiting bool     // the twin waits for a message, and there is none
	buffer  []answer // said and not flushed
	wire    []answer // said and not yet received
	log     []string
	copies  bool // a COPY FROM STDIN has begun and is not complete
	doubt   bool // one has failed, so it may be unknown which Syncs it has swallowed
	seen    *coverage
}

// coverage counts what happened over all runs, so that a test which has become vacuous is seen.
type coverage struct {
	messages, answers, idle, errors, doubt, lost, swallowed, inCopy, skipping, rollbacks, copyFails, flushes, syncs, gaveUp, reused int
}

func (r *run) send(m message) error {
	r.log = append(r.log, sent(m.typ))
	r.seen.messages++
	if err := r.link.Sent(m.typ); err != nil {
		return err
	}
	r.twin.input = append(r.twin.input, m)
	r.waiting = false
	return nil
}

// asked is false for what may come at any time.
func (a answer) asked() bool {
	return a.typ != pgwire.NoticeResponse && a.typ != pgwire.NotificationResponse && a.typ != pgwire.ParameterStatus
}

// work has the twin go on up to its next answer, or until it waits.
func (r *run) work() {
	a, alive := r.resume()
	if !alive || a.typ == waits {
		r.waiting = true
		return
	}
	if a.typ != flushed {
		if r.rng.IntN(20) == 0 {
			extra := []byte{pgwire.NoticeResponse, pgwire.NotificationResponse, pgwire.ParameterStatus}[r.rng.IntN(3)]
			r.buffer = append(r.buffer, answer{typ: extra})
		}
		r.buffer = append(r.buffer, a)
	}
	if a.flushes() || r.rng.IntN(20) == 0 { // a full buffer is written too
		r.wire = append(r.wire, r.buffer...)
		r.buffer = r.buffer[:0]
	}
}

func (r *run) receive() error {
	a := r.wire[0]
	r.wire = r.wire[1:]
	r.log = append(r.log, received(a))
	r.seen.answers++
	switch a.typ {
	case pgwire.CopyInResponse:
		r.copies = true
	case pgwire.CommandComplete:
		r.copies = false
	case pgwire.ErrorResponse:
		r.seen.errors++
		if r.copies {
			r.copies, r.doubt = false, true
			r.seen.inCopy++
		}
	}
	_, err := r.link.Received(a.typ, a.status)
	return err
}

// check compares what the Link believes with what is true.
func (r *run) check() error {
	l := &r.link
	if r.twin.stolen {
		return fmt.Errorf("what the client left unfinished has been committed")
	}
	if l.swallowed > 0 {
		r.seen.swallowed++
	}
	if l.skipping {
		r.seen.skipping++
	}
	if l.doubt > 0 {
		r.seen.doubt++
	}
	if l.Lost() {
		r.seen.lost++
		if l.Idle() {
			return fmt.Errorf("lost and idle at once")
		}
		return nil
	}
	if l.Idle() && (!l.Settled() || l.Busy() || l.Outstanding() != 0 || l.Abandon() != Done) {
		return fmt.Errorf("idle, but settled %v, busy %v, outstanding %d", l.Settled(), l.Busy(), l.Outstanding())
	}
	if len(r.wire) == 0 && !l.Busy() && l.doubt == 0 {
		// Then nothing comes without a further message.
		for !r.waiting {
			r.work()
			if len(r.wire) > 0 {
				return fmt.Errorf("settled %v, busy %v, but there comes %s", l.Settled(), l.Busy(), received(r.wire[0]))
			}
		}
	}
	if len(r.wire) > 0 {
		if l.Idle() && slices.ContainsFunc(r.wire, answer.asked) {
			return fmt.Errorf("idle, but %s is under way", received(r.wire[0]))
		}
		return nil
	}
	if !r.waiting {
		return nil
	}
	if len(r.buffer) > 0 {
		if !l.Busy() && l.doubt == 0 && slices.ContainsFunc(r.buffer, answer.asked) {
			return fmt.Errorf("not busy, but %s is not flushed yet", received(r.buffer[0]))
		}
		return nil
	}
	// All is read, said and received: now the Link must know, unless it knows that it does not.
	b := r.twin
	if l.doubt > 0 {
		if l.Settled() || l.Doubtful() && (b.batch || b.ignoring || b.copying) {
			return fmt.Errorf("in doubt, settled %v, the server is %s", l.Settled(), b.describe())
		}
		return nil
	}
	switch {
	case l.Idle() != b.idle():
		return fmt.Errorf("the Link says idle %v, the server is %s", l.Idle(), b.describe())
	case l.Busy() != b.copying:
		return fmt.Errorf("the Link says busy %v, the server is %s", l.Busy(), b.describe())
	case l.Settled() != (!b.batch && !b.ignoring && !b.copying):
		return fmt.Errorf("the Link says settled %v, the server is %s", l.Settled(), b.describe())
	case l.Settled() && l.Status() != b.block:
		return fmt.Errorf("the Link says status %c, the server is %s", l.Status(), b.describe())
	}
	if l.Idle() {
		r.seen.idle++
	}
	return nil
}

func (b *backend) describe() string {
	return fmt.Sprintf("in status %c, ignoring until Sync %v, in a batch %v, copying %v", b.block, b.ignoring, b.batch, b.copying)
}

// serve lets a client talk for a number of steps. How eager each side is decides how long the pipelines get.
func (r *run) serve() error {
	t := newTraffic(r.rng)
	eager := [3]int{1 + r.rng.IntN(8), 1 + r.rng.IntN(8), 1 + r.rng.IntN(8)}
	for range 5 + r.rng.IntN(60) {
		var err error
		switch x := r.rng.IntN(eager[0] + eager[1] + eager[2]); {
		case x < eager[0]:
			err = r.send(t.next())
		case x < eager[0]+eager[1]:
			if !r.waiting {
				r.work()
			}
		case len(r.wire) > 0:
			err = r.receive()
		}
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// abandon ends what a client has left behind, as Abandon says.
func (r *run) abandon() error {
	for range 10000 {
		step := r.link.Abandon()
		var err error
		switch step {
		case Done:
			if !r.link.Idle() {
				return fmt.Errorf("done, but not idle")
			}
			return r.check()
		case GiveUp:
			r.seen.gaveUp++
			if !r.link.Lost() {
				err = fmt.Errorf("gives up a connection that is not lost")
			} else if !r.doubt {
				err = fmt.Errorf("lost, but no COPY has failed")
			}
			return err
		case SayCopyFail:
			r.seen.copyFails++
			err = r.send(message{typ: pgwire.CopyFail, ours: true})
		case SayFlush:
			r.seen.flushes++
			err = r.send(message{typ: pgwire.Flush, ours: true})
		case SaySync:
			r.seen.syncs++
			err = r.send(message{typ: pgwire.Sync, ours: true})
		case SayRollback:
			r.seen.rollbacks++
			err = r.send(message{typ: pgwire.Query, sql: []statement{rollback}, ours: true})
		case Wait:
			for len(r.wire) == 0 {
				if r.waiting {
					return fmt.Errorf("waits for ever: the server is %s", r.twin.describe())
				}
				r.work()
			}
			err = r.receive()
		}
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("does not come to an end")
}

// The heart of the matter: whatever clients do, in whatever order the two directions pass, Idle is exactly right, and
// what a client leaves behind can be ended.
//
// S6, S10
func TestALinkAgreesWithItsTwin(t *testing.T) {
	runs := 6000
	var seen coverage
	for seed := range runs {
		r := &run{rng: rand.New(rand.NewPCG(uint64(seed), 1)), twin: &backend{}, seen: &seen}
		r.link.Reset()
		var stop func()
		r.resume, stop = r.twin.start()
		r.waiting = true
		var err error
		for client := 0; client < 3 && err == nil && !r.link.Lost(); client++ {
			if client > 0 {
				seen.reused++
				r.log = append(r.log, "# the next client")
			}
			if err = r.serve(); err == nil {
				r.log = append(r.log, "# it has left")
				err = r.abandon()
			}
		}
		stop()
		if err != nil {
			t.Fatalf("seed %d: %v, after\n%s", seed, err, strings.Join(r.log, "\n"))
		}
	}
	t.Logf("%+v", seen)
	if seen.messages < 20*runs || seen.answers < 20*runs || seen.idle < runs || seen.errors < runs || seen.reused < runs ||
		min(seen.inCopy, seen.skipping, seen.rollbacks, seen.copyFails, seen.flushes, seen.syncs, seen.swallowed, seen.doubt) < runs/10 ||
		seen.gaveUp == 0 || seen.gaveUp > runs/50 {
		t.Errorf("the runs have become too tame, or too wild: %+v", seen)
	}
}
