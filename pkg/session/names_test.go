package session

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// Names of messages as PostgreSQL's documentation has them; a type means something else in each direction.
var clientNames = map[byte]string{
	pgwire.Query: "Query", pgwire.Parse: "Parse", pgwire.Bind: "Bind", pgwire.Describe: "Describe", pgwire.Execute: "Execute",
	pgwire.Close: "Close", pgwire.Sync: "Sync", pgwire.Flush: "Flush", pgwire.FunctionCall: "FunctionCall",
	pgwire.CopyData: "CopyData", pgwire.CopyDone: "CopyDone", pgwire.CopyFail: "CopyFail", pgwire.Terminate: "Terminate",
	pgwire.Password: "PasswordMessage",
}

var serverNames = map[byte]string{
	pgwire.Authentication: "Authentication", pgwire.BackendKeyData: "BackendKeyData", pgwire.ParameterStatus: "ParameterStatus",
	pgwire.ReadyForQuery: "ReadyForQuery", pgwire.ErrorResponse: "ErrorResponse", pgwire.NoticeResponse: "NoticeResponse",
	pgwire.NotificationResponse: "NotificationResponse", pgwire.ParseComplete: "ParseComplete",
	pgwire.BindComplete: "BindComplete", pgwire.CloseComplete: "CloseComplete",
	pgwire.ParameterDescription: "ParameterDescription", pgwire.RowDescription: "RowDescription", pgwire.NoData: "NoData",
	pgwire.DataRow: "DataRow", pgwire.CommandComplete: "CommandComplete", pgwire.EmptyQueryResponse: "EmptyQueryResponse",
	pgwire.PortalSuspended: "PortalSuspended", pgwire.CopyInResponse: "CopyInResponse",
	pgwire.CopyOutResponse: "CopyOutResponse", pgwire.CopyBothResponse: "CopyBothResponse", pgwire.CopyData: "CopyData",
	pgwire.CopyDone: "CopyDone", pgwire.FunctionCallResponse: "FunctionCallResponse",
	pgwire.NegotiateProtocol: "NegotiateProtocolVersion",
}

// sent and received render a message as the scenario files do.
func sent(typ byte) string { return "> " + clientNames[typ] }

func received(a answer) string {
	if a.typ == pgwire.ReadyForQuery {
		return fmt.Sprintf("< ReadyForQuery %c", a.status)
	}
	return "< " + serverNames[a.typ]
}

// typeOf is the inverse of the tables; "0x21" is a type without a name.
func typeOf(names map[byte]string, name string) (byte, error) {
	for typ, n := range names {
		if n == name {
			return typ, nil
		}
	}
	if digits, ok := strings.CutPrefix(name, "0x"); ok {
		n, err := strconv.ParseUint(digits, 16, 8)
		return byte(n), err
	}
	return 0, fmt.Errorf("no message is called %q", name)
}

var stepNames = map[Step]string{
	Done: "done", Wait: "wait", SayCopyFail: "say CopyFail", SayFlush: "say Flush", SaySync: "say Sync", SayRollback: "say Query", GiveUp: "give up",
}

// state draws all that a Link tells.
func state(l *Link) string {
	name := "open"
	switch {
	case l.Idle():
		name = "idle"
	case l.Lost() && l.Settled():
		name = "lost, all answered"
	case l.Lost():
		name = "lost"
	case l.Doubtful():
		name = "doubtful"
	case l.Busy():
		name = fmt.Sprintf("busy %d", l.Outstanding())
	case l.Settled():
		name = "settled"
	}
	return fmt.Sprintf("    %s, status %c, abandon: %s", name, l.Status(), stepNames[l.Abandon()])
}
