package session

import (
	"iter"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// The twin of Link is a PostgreSQL backend written down the way PostgresMain reads: one loop, one message after the
// other, an error is a jump back to the top. It is slow and straight so that one can see that it is right, and
// TestTheTwinAnswersAsPostgreSQLDoes compares it with the real thing.

// statement is what a piece of SQL does.
type statement uint8

const (
	rows       statement = iota // SELECT
	change                      // INSERT
	empty                       // no SQL at all
	begin                       // BEGIN
	commit                      // COMMIT
	rollback                    // ROLLBACK
	boom                        // fails when executed
	late                        // breaks a deferred constraint: the transaction cannot be committed
	copyTo                      // COPY TO STDOUT
	copyFrom                    // COPY FROM STDIN
	copyEarly                   // COPY FROM STDIN that fails once it has begun, before anything is read
	copyLate                    // COPY FROM STDIN that fails after CopyDone
	statements                  // how many there are
)

func (s statement) exits() bool      { return s == commit || s == rollback }
func (s statement) copiesIn() bool   { return s == copyFrom || s == copyEarly || s == copyLate }
func (s statement) hasColumns() bool { return s == rows || s == boom }

// message is what a client sends, with what it will lead to.
type message struct {
	typ   byte
	sql   []statement // of a Query several; of Parse, Bind, Describe and Execute one
	fails bool        // it is wrong in itself: a syntax error, a missing statement, a bad row
	part  bool        // Execute: not all rows; Describe: a statement and not a portal
	ours  bool        // said in place of a client that has left
}

// answer is what a backend sends. It stays in the backend's buffer up to a message that flushes it, or flushed.
type answer struct{ typ, status byte }

const (
	waits   = 0 // no answer: the backend waits for a message
	flushed = 1 // no answer: the backend has seen Flush
)

func (a answer) flushes() bool {
	return a.typ == pgwire.ReadyForQuery || a.typ == pgwire.ErrorResponse || a.typ == pgwire.CopyInResponse || a.typ == flushed
}

// backend is the server's end of a connection after the login. Input may be appended to at any time.
type backend struct {
	input []message

	block    byte // the transaction block's state as ReadyForQuery tells it
	doomed   bool // a deferred constraint is broken
	changed  bool // something has been done that is not committed
	stolen   bool // something was committed by a message that is not the client's
	ignoring bool // ignore_till_sync
	extended bool // doing_extended_query_message
	batch    bool // an extended-query message was executed and neither Sync nor a simple query after it
	copying  bool // within CopyFrom
	ours     bool // the message being worked off is not the client's
	dead     bool // FATAL

	yield func(answer) bool
}

// errorReport is a longjmp, gone the end of the process.
type (
	errorReport struct{}
	gone        struct{}
)

// start gives the function that has the backend go on up to its next answer.
func (b *backend) start() (next func() (answer, bool), stop func()) {
	b.block = pgwire.StatusIdle
	return iter.Pull(func(yield func(answer) bool) {
		defer func() {
			if r := recover(); r != nil && r != (gone{}) {
				panic(r)
			}
		}()
		b.yield = yield
		b.main()
	})
}

func (b *backend) say(typ byte) {
	if !b.yield(answer{typ, b.block}) {
		panic(gone{})
	}
}

func (b *backend) read() message {
	for len(b.input) == 0 {
		if !b.yield(answer{typ: waits}) {
			panic(gone{})
		}
	}
	m := b.input[0]
	b.input = b.input[1:]
	b.ours = m.ours
	return m
}

func (b *backend) fail() { panic(errorReport{}) }

func (b *backend) main() {
	sendReady := false
	for {
		b.extended = false
		if sendReady {
			b.say(pgwire.ReadyForQuery)
			sendReady = false
		}
		m := b.read()
		switch m.typ {
		case pgwire.Parse, pgwire.Bind, pgwire.Describe, pgwire.Execute, pgwire.Close, pgwire.Flush:
			b.extended = true
		case pgwire.Sync:
			b.ignoring = false
		}
		if b.ignoring {
			continue
		}
		if b.try(func() { sendReady = b.command(m) }) {
			continue
		}
		if b.dead {
			return
		}
		if b.extended {
			b.ignoring = true
		}
		sendReady = !b.ignoring
	}
}

// try runs what may fail, and after an error reports it and aborts the transaction.
func (b *backend) try(f func()) (ok bool) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if r != (errorReport{}) {
			panic(r)
		}
		ok = false
		b.copying = false
		b.say(pgwire.ErrorResponse)
		if b.block != pgwire.StatusIdle {
			b.block = pgwire.StatusFailed
		}
		b.doomed, b.changed = false, false
		if b.dead {
			b.say(pgwire.ErrorResponse) // FATAL: protocol synchronization was lost
		}
	}()
	f()
	return true
}

// command is the big switch of PostgresMain. It tells whether ReadyForQuery follows.
func (b *backend) command(m message) bool {
	switch m.typ {
	case pgwire.Query:
		b.batch = false
		b.simpleQuery(m)
		return true
	case pgwire.FunctionCall:
		b.batch = false
		if m.fails || b.block == pgwire.StatusFailed {
			b.fail()
		}
		b.say(pgwire.FunctionCallResponse)
		b.finish()
		return true
	case pgwire.Sync:
		b.batch = false
		b.finish()
		return true
	case pgwire.Parse:
		b.batch = true
		if m.fails || b.block == pgwire.StatusFailed && m.sql[0] != empty && !m.sql[0].exits() {
			b.fail()
		}
		b.say(pgwire.ParseComplete)
	case pgwire.Bind:
		b.batch = true
		if m.fails || b.block == pgwire.StatusFailed && !m.sql[0].exits() {
			b.fail()
		}
		b.say(pgwire.BindComplete)
	case pgwire.Describe:
		b.batch = true
		if m.fails || b.block == pgwire.StatusFailed && m.sql[0].hasColumns() {
			b.fail()
		}
		if m.part {
			b.say(pgwire.ParameterDescription)
		}
		if m.sql[0].hasColumns() {
			b.say(pgwire.RowDescription)
		} else {
			b.say(pgwire.NoData)
		}
	case pgwire.Execute:
		b.batch = true
		b.execute(m)
	case pgwire.Close:
		b.batch = true
		if m.fails {
			b.fail()
		}
		b.say(pgwire.CloseComplete)
	case pgwire.Flush:
		b.say(flushed)
	case pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail:
		// Nothing: they are from a client that has not seen yet that its COPY failed.
	}
	return false
}

func (b *backend) simpleQuery(m message) {
	if m.fails {
		b.fail() // does not parse
	}
	for i, s := range m.sql {
		if s == empty {
			b.say(pgwire.EmptyQueryResponse)
			continue
		}
		if b.block == pgwire.StatusFailed && !s.exits() {
			b.fail()
		}
		if s.hasColumns() {
			b.say(pgwire.RowDescription)
		}
		b.runStatement(s)
		if i == len(m.sql)-1 {
			b.finish()
		}
		b.say(pgwire.CommandComplete)
	}
}

func (b *backend) execute(m message) {
	s := m.sql[0]
	switch {
	case m.fails:
		b.fail() // no such portal
	case s == empty:
		b.say(pgwire.EmptyQueryResponse)
		return
	case b.block == pgwire.StatusFailed && !s.exits():
		b.fail()
	case s == rows && m.part:
		b.say(pgwire.DataRow)
		b.say(pgwire.PortalSuspended)
		return
	}
	b.runStatement(s)
	b.say(pgwire.CommandComplete)
}

// runStatement does what a statement does up to its CommandComplete.
func (b *backend) runStatement(s statement) {
	switch {
	case s == rows:
		b.say(pgwire.DataRow)
	case s == boom:
		b.say(pgwire.DataRow)
		b.fail()
	case s == begin:
		b.block = pgwire.StatusInTx
	case s == change:
		b.changed = true
	case s == commit:
		b.block = pgwire.StatusIdle
		b.finish()
	case s == rollback:
		b.block, b.doomed, b.changed = pgwire.StatusIdle, false, false
	case s == late:
		b.doomed = true
	case s == copyTo:
		b.say(pgwire.CopyOutResponse)
		b.say(pgwire.CopyData)
		b.say(pgwire.CopyDone)
	case s.copiesIn():
		b.copyFrom(s)
	}
}

// copyFrom is DoCopy with CopyGetData in it.
func (b *backend) copyFrom(s statement) {
	b.copying = true
	b.say(pgwire.CopyInResponse)
	if s == copyEarly {
		b.fail()
	}
	for {
		m := b.read()
		switch m.typ {
		case pgwire.CopyData:
			if m.fails {
				b.fail()
			}
		case pgwire.Flush, pgwire.Sync:
			// Ignored, for the convenience of libraries that may send them without noticing that the command was COPY.
		case pgwire.CopyFail:
			b.fail()
		case pgwire.CopyDone:
			if s == copyLate {
				b.fail()
			}
			b.copying, b.changed = false, true
			return
		default:
			b.dead = true
			b.fail()
		}
	}
}

// finish is finish_xact_command: outside of a transaction block it commits.
func (b *backend) finish() {
	if b.block != pgwire.StatusIdle {
		return
	}
	if b.doomed {
		b.fail()
	}
	b.stolen = b.stolen || b.changed && b.ours
	b.changed = false
}

// idle: nothing is open. What has been answered and delivered is not the backend's to know.
func (b *backend) idle() bool {
	return b.block == pgwire.StatusIdle && !b.ignoring && !b.batch && !b.copying
}
