// Package session knows what a client and the server connection linked to it owe each other: requests without an
// answer, transaction status, COPY, tracked parameters. It answers one question: may this server connection go back to
// the pool?
//
// It sees message types in the order they pass and refuses everything else: no bytes, no sockets, no clock, no SQL, no
// pool. A transcript decides its state.
package session

import (
	"fmt"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// request is what the server owes one answer for; the sequence of them is a FIFO because the server answers in order.
type request uint8

const (
	reqParse    request = 1 + iota
	reqBind             // answered by BindComplete
	reqDescribe         // by RowDescription or NoData
	reqExecute          // by CommandComplete, EmptyQueryResponse or PortalSuspended
	reqClose            // by CloseComplete
	reqSync             // by ReadyForQuery
	reqQuery            // by anything, then ReadyForQuery
	reqFunction         // by FunctionCallResponse, then ReadyForQuery
	// reqCopyEnd marks where the client ended a COPY that the server has not begun yet. It has no answer of its own; it
	// tells which Syncs the COPY will swallow.
	reqCopyEnd
)

// copyState is where a COPY FROM STDIN stands, as the server sees it.
type copyState uint8

const (
	copyNone   copyState = iota
	copyIn               // the server reads CopyData; Sync and Flush are ignored
	copyEnding           // the client has said CopyDone or CopyFail, the server has not answered yet
)

// Link is the protocol state of one server connection while a client uses it, and between. The zero value is not
// ready: a server connection starts by Reset after its login.
//
// Transitions: Sent for each message on its way to the server, Received for each message from it. Both are called in
// the order of the bytes on the wire, when the message's header passes.
type Link struct {
	// queue[head:] are the unanswered requests, oldest first.
	queue []request
	head  int
	small [16]request // queue's first storage: most clients never need more

	status byte // of the last ReadyForQuery
	copy   copyState
	// skipping: the server met an error in an extended-protocol message and discards everything up to the next Sync,
	// which the client has not sent yet.
	skipping bool
	// unsynced: an extended-protocol message was sent after the last Sync, so an implicit transaction may be open.
	unsynced bool
	// swallowed: Syncs that the COPY under way has made the server ignore. An error in that COPY makes it unknowable
	// whether the server saw them before or after.
	swallowed bool
	// lost: the number of answers to come is not known any more; the connection must not be used again.
	lost bool
}

// Reset puts l into the state after a login: idle.
func (l *Link) Reset() {
	*l = Link{status: pgwire.StatusIdle}
}

// Sent records that a message of this type goes to the server. An unknown type is an error and is not recorded.
func (l *Link) Sent(typ byte) error {
	switch typ {
	case pgwire.Query:
		l.plain(reqQuery)
	case pgwire.FunctionCall:
		l.plain(reqFunction)
	case pgwire.Parse:
		l.extended(reqParse)
	case pgwire.Bind:
		l.extended(reqBind)
	case pgwire.Describe:
		l.extended(reqDescribe)
	case pgwire.Execute:
		l.extended(reqExecute)
	case pgwire.Close:
		l.extended(reqClose)
	case pgwire.Flush:
		// Not answered, but it shows that the client means to go on before a Sync.
		if l.copy != copyIn {
			l.unsynced = true
		}
	case pgwire.Sync:
		if l.copy == copyIn {
			l.swallowed = true
			return nil
		}
		l.skipping = false
		l.unsynced = false
		l.push(reqSync)
	case pgwire.CopyData:
	case pgwire.CopyDone, pgwire.CopyFail:
		switch {
		case l.copy == copyIn:
			l.copy = copyEnding
		case l.head < len(l.queue) && !l.skipping:
			l.push(reqCopyEnd)
		}
	default:
		return &UnexpectedError{From: "client", Type: typ}
	}
	return nil
}

// plain records a request that the server answers with a ReadyForQuery of its own; while it skips to a Sync it ignores
// these too.
func (l *Link) plain(r request) {
	if !l.skipping {
		l.push(r)
	}
}

func (l *Link) extended(r request) {
	l.unsynced = true
	if !l.skipping {
		l.push(r)
	}
}

// UnexpectedError is a message that the protocol does not allow there. The connection it came from is not usable.
type UnexpectedError struct {
	From string // "client" or "server"
	Type byte
}

func (e *UnexpectedError) Error() string {
	if e.From == "client" {
		return fmt.Sprintf("invalid frontend message type %s", pgwire.TypeName(e.Type))
	}
	return fmt.Sprintf("server sent message %s where the protocol does not allow it", pgwire.TypeName(e.Type))
}

// Received records a message from the server; status is the byte of a ReadyForQuery. An error means that the server
// said what nobody asked for.
func (l *Link) Received(typ, status byte) error {
	switch typ {
	case pgwire.DataRow, pgwire.CopyData, pgwire.RowDescription, pgwire.CommandComplete, pgwire.ParseComplete,
		pgwire.BindComplete, pgwire.CloseComplete, pgwire.ParameterDescription, pgwire.NoData, pgwire.EmptyQueryResponse,
		pgwire.PortalSuspended, pgwire.CopyDone, pgwire.FunctionCallResponse:
		if l.head == len(l.queue) {
			return &UnexpectedError{From: "server", Type: typ}
		}
		return l.answer(typ)
	case pgwire.ReadyForQuery:
		return l.ready(status)
	case pgwire.ErrorResponse:
		l.failed()
	case pgwire.NoticeResponse, pgwire.NotificationResponse, pgwire.ParameterStatus:
	case pgwire.CopyInResponse, pgwire.CopyOutResponse, pgwire.CopyBothResponse:
		return l.copying(typ)
	default:
		return &UnexpectedError{From: "server", Type: typ}
	}
	return nil
}

// answer pops the head if typ is its last message. Under a simple Query everything is part of the answer.
func (l *Link) answer(typ byte) error {
	head := l.queue[l.head]
	if head == reqQuery || head == reqFunction {
		if typ == pgwire.CommandComplete {
			l.copyOver()
		}
		return nil
	}
	var want request
	switch typ {
	case pgwire.DataRow, pgwire.CopyData, pgwire.CopyDone:
		if head == reqExecute {
			return nil
		}
	case pgwire.ParameterDescription:
		if head == reqDescribe {
			return nil
		}
	case pgwire.ParseComplete:
		want = reqParse
	case pgwire.BindComplete:
		want = reqBind
	case pgwire.CloseComplete:
		want = reqClose
	case pgwire.RowDescription, pgwire.NoData:
		want = reqDescribe
	case pgwire.CommandComplete, pgwire.EmptyQueryResponse, pgwire.PortalSuspended:
		want = reqExecute
	}
	if head != want {
		return &UnexpectedError{From: "server", Type: typ}
	}
	l.pop()
	l.copyOver()
	return nil
}

func (l *Link) ready(status byte) error {
	if status != pgwire.StatusIdle && status != pgwire.StatusInTx && status != pgwire.StatusFailed {
		return fmt.Errorf("server sent ReadyForQuery with status %s, allowed are 'I', 'T' and 'E'", pgwire.TypeName(status))
	}
	if l.head == len(l.queue) {
		if l.lost {
			l.status = status
			return nil
		}
		return &UnexpectedError{From: "server", Type: pgwire.ReadyForQuery}
	}
	switch l.queue[l.head] {
	case reqSync, reqQuery, reqFunction:
		l.pop()
	default:
		// An answer is missing.
		return &UnexpectedError{From: "server", Type: pgwire.ReadyForQuery}
	}
	l.status = status
	l.copyOver()
	return nil
}

// failed: an ErrorResponse. In the extended protocol the server now discards everything up to the next Sync.
func (l *Link) failed() {
	if l.copy != copyNone && l.swallowed {
		l.lost = true
	}
	if l.head == len(l.queue) {
		// Nobody asked: the server is about to close the connection, or an extended-protocol message that has been
		// answered failed late (a Flush).
		if l.unsynced {
			l.skipping = true
		}
		return
	}
	switch l.queue[l.head] {
	case reqSync, reqQuery, reqFunction:
	default:
		l.skipping = true
		for l.head < len(l.queue) {
			if l.queue[l.head] == reqSync {
				l.skipping = false
				break
			}
			l.head++
		}
		l.settle()
	}
	l.copyOver()
}

// copying: the server begins a COPY. Syncs that are already under way up to the client's CopyDone will be ignored.
func (l *Link) copying(typ byte) error {
	if l.head == len(l.queue) || (l.queue[l.head] != reqExecute && l.queue[l.head] != reqQuery) {
		return &UnexpectedError{From: "server", Type: typ}
	}
	switch typ {
	case pgwire.CopyOutResponse:
		return nil
	case pgwire.CopyBothResponse:
		// Only replication uses it, and replication is not pooled.
		return &UnexpectedError{From: "server", Type: typ}
	}
	l.copy = copyIn
	kept := l.queue[:l.head+1]
	for i, r := range l.queue[l.head+1:] {
		if r == reqCopyEnd {
			l.copy = copyEnding
			kept = append(kept, l.queue[l.head+2+i:]...)
			break
		}
		if r == reqSync {
			l.swallowed = true
			l.unsynced = true
			continue
		}
		kept = append(kept, r)
	}
	l.queue = kept
	return nil
}

func (l *Link) copyOver() {
	l.copy = copyNone
	l.swallowed = false
}

func (l *Link) push(r request) {
	if l.queue == nil {
		l.queue = l.small[:0]
	}
	if l.head > 0 && len(l.queue) == cap(l.queue) {
		n := copy(l.queue, l.queue[l.head:])
		l.queue, l.head = l.queue[:n], 0
	}
	l.queue = append(l.queue, r)
}

// pop removes the head and the copy marks behind it, which nothing answers.
func (l *Link) pop() {
	l.head++
	l.settle()
}

func (l *Link) settle() {
	for l.head < len(l.queue) && l.queue[l.head] == reqCopyEnd {
		l.head++
	}
	if l.head == len(l.queue) {
		l.head = 0
		l.queue = l.queue[:0]
		// A pipeline of thousands does not keep its memory.
		if cap(l.queue) > 1024 {
			l.queue = l.small[:0]
		}
	}
}

// Idle says that the last ReadyForQuery said so, nothing is outstanding and no COPY is in progress. Whether all bytes have been
// flushed and the last message is whole is the caller's to know.
func (l *Link) Idle() bool {
	return l.head == len(l.queue) && l.status == pgwire.StatusIdle && !l.unsynced && !l.skipping && l.copy == copyNone && !l.lost
}

// Status is the transaction status of the last ReadyForQuery.
func (l *Link) Status() byte { return l.status }

// Settled says that nothing is outstanding, whatever the transaction status.
func (l *Link) Settled() bool {
	return l.head == len(l.queue) && !l.unsynced && !l.skipping && l.copy == copyNone
}

// Lost says that the connection must be closed when its client is done, it can't be told what it still owes.
func (l *Link) Lost() bool { return l.lost }

// Outstanding is the number of unanswered requests.
func (l *Link) Outstanding() int { return len(l.queue) - l.head }

// Busy says that the server owes an answer, so there is something to cancel.
func (l *Link) Busy() bool { return l.head < len(l.queue) }

// Step is what to say to the server in place of a client that has left.
type Step uint8

const (
	// Done: the server connection may go back to the pool.
	Done Step = iota
	// Wait: it owes answers; ask again when one has come.
	Wait
	// SayCopyFail ends the COPY.
	SayCopyFail
	// SaySync ends the extended-protocol batch.
	SaySync
	// SayRollback ends the transaction.
	SayRollback
	// GiveUp: only closing helps.
	GiveUp
)

// Abandon tells the next step after the client has left. The caller says it (recording it by Sent) and asks again
// after each answer.
func (l *Link) Abandon() Step {
	switch {
	case l.lost:
		return GiveUp
	case l.copy == copyIn:
		return SayCopyFail
	case l.unsynced || l.skipping:
		return SaySync
	case l.head < len(l.queue):
		return Wait
	case l.status != pgwire.StatusIdle:
		return SayRollback
	}
	return Done
}
