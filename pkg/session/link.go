// Package session knows what a client and the server connection linked to it owe each other: requests without an
// answer, transaction status, COPY, prepared statements, parameters. It answers one question: may this server connection go back to
// the pool?
//
// It sees message types in the order they pass, and reads a statement's text once for the words that tell what it leaves
// in its session. It refuses everything else: no sockets, no clock, no parsing of SQL, no pool. A transcript decides its
// state.
package session

import (
	"fmt"
	"slices"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// request is what the server owes one answer for; the sequence of them is a FIFO because the server answers in order.
type request uint16

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

// What is added to a request.
const (
	// own: the pooler has sent it for itself, so the answer is not the client's.
	own request = 0x10 << iota
	// local: it was not sent; the pooler answers it when its turn comes.
	local
	// named: it has an undo.
	named
	// renamed: it went under another name than the client's.
	renamed
	// unnamed: it changes what the unnamed prepared statement is.
	unnamed

	kinds = own - 1
)

func (r request) kind() request { return r & kinds }

// ends tells whether r is answered by ReadyForQuery, after which no implicit transaction is open.
func (r request) ends() bool {
	switch r.kind() {
	case reqSync, reqQuery, reqFunction:
		return true
	}
	return false
}

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
	// unsynced: an extended-protocol message was sent and no Sync, Query or FunctionCall after it, so an implicit
	// transaction may be open.
	unsynced bool
	// flushed: a Flush was sent after it, so the answers come before a Sync does.
	flushed bool
	// swallowed counts Syncs that the COPY under way has made the server ignore. If that COPY fails, nobody can tell how
	// many of them the server had read before, and ignored, and how many it reads after, and answers: all of them are in
	// doubt then, at once after an Execute, after the ReadyForQuery of a Query.
	swallowed int
	// doubt counts Syncs that may yet be answered, or not. They are older than everything in queue, so an answer of
	// another kind than ReadyForQuery ends it.
	doubt      int
	laterDoubt int // to be added when the Query at the head is over
	// lost: a message was sent in a doubt that decides whether the server reads it or skips it. What is owed will never
	// be known again, so nothing the server says can be judged, and no other client may use the connection.
	lost bool

	naming naming
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
		// Not answered, and it opens nothing. A COPY ignores it.
		l.flushed = l.copy != copyIn
	case pgwire.Sync:
		if l.copy == copyIn {
			l.swallowed++
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
		case l.Busy():
			l.push(reqCopyEnd)
		}
	default:
		return &UnexpectedError{From: "client", Type: typ}
	}
	return nil
}

// plain records a request that the server answers with a ReadyForQuery of its own, which also ends an implicit
// transaction that extended-protocol messages before it have opened.
func (l *Link) plain(r request) {
	r |= unnamed // a Query drops it
	l.naming.unnamed = nil
	if !l.skips() {
		l.unsynced = false
		l.push(r)
	}
}

func (l *Link) extended(r request) {
	l.unsynced, l.flushed = true, false
	if !l.skips() {
		l.push(r)
	}
}

// skips tells whether the server ignores a message that is not a Sync.
func (l *Link) skips() bool {
	if l.skipping && l.doubt > 0 {
		l.lost = true // or perhaps not, if it answers one of those Syncs
	}
	return l.skipping
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

// Received records a message from the server; status is the byte of a ReadyForQuery. What Local has to say comes before
// it. mine says that it answers a request of the pooler's own and is not for the client. An error means that the server
// said what nobody asked for.
func (l *Link) Received(typ, status byte) (mine bool, err error) {
	switch typ {
	case pgwire.DataRow, pgwire.CopyData, pgwire.RowDescription, pgwire.CommandComplete, pgwire.ParseComplete,
		pgwire.BindComplete, pgwire.CloseComplete, pgwire.ParameterDescription, pgwire.NoData, pgwire.EmptyQueryResponse,
		pgwire.PortalSuspended, pgwire.CopyDone, pgwire.FunctionCallResponse:
		if !l.Busy() {
			return false, l.unexpected(typ)
		}
		return l.answer(typ)
	case pgwire.ReadyForQuery:
		return false, l.ready(status)
	case pgwire.ErrorResponse:
		l.failed()
	case pgwire.NoticeResponse, pgwire.NotificationResponse, pgwire.ParameterStatus:
	case pgwire.CopyInResponse, pgwire.CopyOutResponse, pgwire.CopyBothResponse:
		return false, l.copying(typ)
	default:
		return false, &UnexpectedError{From: "server", Type: typ}
	}
	return false, nil
}

// answer pops the head if typ is its last message. Under a simple Query everything is part of the answer.
func (l *Link) answer(typ byte) (mine bool, err error) {
	l.certain()
	mine = l.queue[l.head]&own != 0
	head := l.queue[l.head].kind()
	if head == reqQuery || head == reqFunction {
		if typ == pgwire.CommandComplete {
			l.copyOver()
		}
		return mine, nil
	}
	var want request
	switch typ {
	case pgwire.DataRow, pgwire.CopyData, pgwire.CopyDone:
		if head == reqExecute {
			return mine, nil
		}
	case pgwire.ParameterDescription:
		if head == reqDescribe {
			return mine, nil
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
		return false, l.unexpected(typ)
	}
	l.pop()
	l.copyOver()
	return mine, nil
}

func (l *Link) ready(status byte) error {
	if status != pgwire.StatusIdle && status != pgwire.StatusInTx && status != pgwire.StatusFailed {
		return fmt.Errorf("server sent ReadyForQuery with status %s, allowed are 'I', 'T' and 'E'", pgwire.TypeName(status))
	}
	switch {
	case l.Busy() && l.queue[l.head].kind() == reqSync:
		l.pop()
	case l.doubt > 0:
		// A Sync that was not swallowed after all.
		l.doubt--
	case l.Busy() && l.queue[l.head].ends():
		l.pop()
		l.doubt, l.laterDoubt = l.laterDoubt, 0
	case l.lost:
		// As good a guess as any: what stands before it was skipped.
		for ended := false; l.Busy() && !ended; l.pop() {
			ended = l.queue[l.head].ends()
		}
	default:
		// Nobody asked, or an answer is missing.
		return l.unexpected(pgwire.ReadyForQuery)
	}
	if l.skipping {
		l.skipping, l.unsynced = false, false // as was not known before: it had seen a Sync
	}
	l.status = status
	l.copyOver()
	return nil
}

// unexpected is what a message is that nobody asked for, as far as that is known.
func (l *Link) unexpected(typ byte) error {
	if l.lost {
		return nil
	}
	return &UnexpectedError{From: "server", Type: typ}
}

// certain: an answer has come that is no ReadyForQuery, so whatever is older has been answered if it ever will.
func (l *Link) certain() {
	if l.Busy() && l.queue[l.head].kind() != reqSync {
		l.doubt = 0
	}
}

// failed: an ErrorResponse. In the extended protocol the server now discards everything up to the next Sync.
func (l *Link) failed() {
	l.naming.failing = nil
	switch l.certain(); {
	case !l.Busy():
		// Nobody asked: the server is about to close the connection, or an extended-protocol message that has been
		// answered failed late (a Flush).
		l.skipping = l.skipping || l.unsynced
	case l.queue[l.head].ends():
		l.laterDoubt = l.swallowed
		if l.queue[l.head]&named != 0 {
			l.queue[l.head] &^= named
			l.naming.discard(1)
		}
	default:
		l.doubt = l.swallowed
		l.skipping = true
		undone := 0
		for first := true; l.Busy(); first = false {
			r := l.queue[l.head]
			if r.kind() == reqSync {
				l.skipping = false
				break
			}
			if !first {
				l.lost = l.lost || l.doubt > 0
			}
			if r&named != 0 {
				undone++
			}
			if r&unnamed != 0 {
				l.naming.mislaid()
			}
			if first {
				l.naming.failing = l.naming.renamedBy(r)
			}
			l.shift()
		}
		l.naming.discard(undone)
	}
	l.copyOver()
}

// copying: the server begins a COPY. Syncs that are already under way up to the client's CopyDone will be ignored.
func (l *Link) copying(typ byte) error {
	if !l.Busy() || (l.queue[l.head].kind() != reqExecute && l.queue[l.head].kind() != reqQuery) {
		return l.unexpected(typ)
	}
	switch typ {
	case pgwire.CopyOutResponse:
		return nil
	case pgwire.CopyBothResponse:
		// Only replication uses it, and replication is not pooled.
		return l.unexpected(typ)
	}
	l.copy = copyIn
	l.flushed = false
	kept := l.queue[:l.head+1]
	batch := l.queue[l.head].kind() == reqExecute // which a swallowed Sync does not end
	for i, r := range l.queue[l.head+1:] {
		if r == reqCopyEnd {
			l.copy = copyEnding
			rest := l.queue[l.head+2+i:]
			batch = batch && !slices.ContainsFunc(rest, request.ends)
			kept = append(kept, rest...)
			break
		}
		if r == reqSync {
			l.swallowed++
			continue
		}
		kept = append(kept, r)
	}
	l.unsynced = l.unsynced || batch
	l.queue = kept
	return nil
}

func (l *Link) copyOver() {
	l.copy = copyNone
	l.swallowed = 0
}

func (l *Link) push(r request) {
	if l.queue == nil {
		l.queue = l.small[:0]
	}
	// Moved when at least half is free, so that a long pipeline does not move all of itself for each message.
	if len(l.queue) == cap(l.queue) && l.head >= cap(l.queue)/2 {
		n := copy(l.queue, l.queue[l.head:])
		l.queue, l.head = l.queue[:n], 0
	}
	l.queue = append(l.queue, r)
}

// pop removes the head, which has been carried out.
func (l *Link) pop() {
	if l.queue[l.head]&named != 0 {
		l.naming.done()
	}
	l.shift()
}

// shift removes the head and the copy marks behind it, which nothing answers.
func (l *Link) shift() {
	if l.queue[l.head]&renamed != 0 {
		l.naming.renames.pop()
	}
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
		l.naming.settled()
		// A pipeline of thousands does not keep its memory.
		if cap(l.queue) > 1024 {
			l.queue = l.small[:0]
		}
	}
}

// Idle says that the last ReadyForQuery said so, nothing is outstanding and no COPY is in progress. Whether all bytes
// have been flushed and the last message is whole is the caller's to know.
func (l *Link) Idle() bool { return l.Settled() && l.status == pgwire.StatusIdle && !l.lost }

// Status is the transaction status of the last ReadyForQuery.
func (l *Link) Status() byte { return l.status }

// Settled says that nothing is outstanding, whatever the transaction status.
func (l *Link) Settled() bool {
	return !l.Busy() && !l.unsynced && !l.skipping && l.copy == copyNone && l.doubt == 0
}

// Doubtful says that everything known to be outstanding has been answered, but that a failed COPY FROM STDIN may have
// left Syncs to be answered. The first answer to a next request shows it, so the client may go on; a query of the
// caller's own shows it too.
func (l *Link) Doubtful() bool { return l.doubt > 0 && !l.Busy() && !l.unsynced && !l.skipping }

// Lost says that it cannot be told any more what the server owes: the connection must be closed when its client is done.
func (l *Link) Lost() bool { return l.lost }

// Outstanding is the number of unanswered requests.
func (l *Link) Outstanding() int {
	n := 0
	for _, r := range l.queue[l.head:] {
		if r != reqCopyEnd {
			n++
		}
	}
	return n
}

// Busy says that the server owes an answer, so there is something to cancel.
func (l *Link) Busy() bool { return l.head < len(l.queue) }

// Step is what to say to the server in place of a client that has left.
type Step uint8

const (
	// Done: the server connection may go back to the pool.
	Done Step = iota
	// Wait: it owes answers; ask again when any message has come.
	Wait
	// SayCopyFail ends the COPY.
	SayCopyFail
	// SayFlush has the answers to an unfinished extended-protocol batch come. What they say decides how it ends.
	SayFlush
	// SaySync ends a batch that has failed.
	SaySync
	// SayRollback ends the transaction, also the implicit one of a batch, which a Sync would commit, or a doubt.
	SayRollback
	// GiveUp: only closing helps.
	GiveUp
)

// Abandon tells the next step after the client has left. The caller says it, recording it by Sent, and asks again at
// once; told to wait, it asks again after each message from the server.
func (l *Link) Abandon() Step {
	switch {
	case l.lost:
		return GiveUp
	case l.copy == copyIn:
		return SayCopyFail
	case l.skipping:
		return SaySync
	case l.unsynced && l.Busy() && !l.flushed:
		return SayFlush
	case l.Busy():
		return Wait
	case l.unsynced || l.doubt > 0 || l.status != pgwire.StatusIdle:
		return SayRollback
	}
	return Done
}
