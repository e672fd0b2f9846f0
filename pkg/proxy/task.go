package proxy

import (
	"slices"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// task is what the pooler itself has a server connection do. Answers to it are not relayed.
type task uint8

const (
	taskNone task = iota
	// taskParams sets the parameters in which the server connection differs from its client's session.
	taskParams
	// taskCheck runs server_check_query before use after a long rest.
	taskCheck
	// taskReset runs server_reset_query after a session.
	taskReset
	// taskAbandon ends what a client has left behind.
	taskAbandon
)

// run has the server connection do a query of the pooler's own. The connection is idle.
func (s *server) run(t task, sql string) {
	s.task = t
	s.failed = nil
	_ = s.link.Sent(pgwire.Query) // always allowed
	s.write(pgwire.AppendQuery(nil, sql))
}

// adapt sets the parameters of a client's session in which the connection differs.
func (s *server) adapt(want session.Params) {
	s.run(taskParams, session.SetStatements(s.params.Missing(want))+session.ResetStatements(s.params.Surplus(want)))
}

// unreported lists what is missing of want among the parameters that the server does not report.
func (s *server) unreported(want session.Params) []pgwire.Parameter {
	return slices.DeleteFunc(s.params.Missing(want), func(kv pgwire.Parameter) bool {
		_, reported := s.reports.Get(kv.Name)
		return reported
	})
}

// untold: setting the parameters of want is not reported in full.
func (s *server) untold(want session.Params) bool {
	return len(s.unreported(want)) > 0 || len(s.params.Surplus(want)) > 0
}

// adapted: the parameters are set. What the server reports it has reported, in its own spelling, and the client keeps
// that: its own would be set again each time. What it does not report is known from what was asked.
func (s *server) adapted(c *client) {
	s.params = s.params.Without(s.params.Surplus(c.params)).Over(session.MakeParams(s.unreported(c.params)))
	c.params = s.params
}

// check runs the check query. A server that does not answer it in the time a login may take is not there.
func (s *server) check(sql string) {
	s.run(taskCheck, sql)
	if limit := s.p.set.ServerConnectTimeout; limit > 0 {
		s.p.loop.Set(&s.timer, s.p.loop.Now()+limit, func() {
			s.discard(pool.TestFailed)
			s.p.settle()
		})
	}
}

// taskStep: the server answered ReadyForQuery to a task.
func (s *server) taskStep() {
	switch s.task {
	case taskAbandon:
		s.cleanUp()
		return
	case taskParams:
		s.task = taskNone
		c := s.client
		if s.failed != nil {
			// The client asked for a value the server does not take.
			why := *s.failed
			s.discard(pool.ParameterChangeFailed)
			if c != nil {
				c.fail(why.Code, "invalid server parameter: "+why.Message)
				c.linger("invalid server parameter")
			}
			return
		}
		if c != nil {
			s.adapted(c)
			s.p.loop.Again(&c.conn.Conn)
			if c.state == stateLeaving {
				c.end("client close request")
			}
		}
		return
	case taskCheck, taskReset:
		t := s.task
		s.task = taskNone
		s.p.loop.Unset(&s.timer)
		if s.failed != nil || !s.link.Idle() {
			s.p.log.Warn("server connection failed its query between clients", "query", taskName(t), "database", s.pooled.route.Database)
			if t == taskCheck {
				s.discard(pool.TestFailed)
			} else {
				s.discard(pool.ResetFailed)
			}
			return
		}
		s.ready()
	}
}

func taskName(t task) string {
	if t == taskCheck {
		return "server_check_query"
	}
	return "server_reset_query"
}

// ready: clean, and usable by anybody.
func (s *server) ready() { s.p.pools.Ready(s.p.now(), s.pb) }

// abandoned: the client has left. A connection in a known state is ended politely in its place, which costs a ROLLBACK
// and not a connection.
func (s *server) abandoned(partial bool) {
	if s.closing || s.closed {
		return
	}
	if partial || s.link.Lost() {
		// Not discard: that would have the pool find the client another connection.
		s.p.pools.Discard(s.p.now(), s.pb, pool.ClientLeftQuerying)
		s.close(pool.ClientLeftQuerying.String())
		return
	}
	if s.link.Idle() && s.task == taskNone {
		s.release()
		return
	}
	s.p.pools.Unlink(s.p.now(), s.pb)
	// Nobody holds up reading any more, and what is there to be read is not announced again.
	s.p.loop.Again(&s.conn.Conn)
	if s.task == taskNone || s.task == taskParams {
		s.task = taskAbandon
		s.cleanUp()
	}
}

// release gives an idle connection that has lost its client back to the pool. A cancel request under way would hit the
// next client, so it is waited for, but not by this client: others may have waited longer.
func (s *server) release() {
	if s.cancels > 0 || s.inDoubt {
		s.p.pools.Unlink(s.p.now(), s.pb)
		s.cleanUp()
		return
	}
	s.p.pools.Release(s.p.now(), s.pb)
}

// cleanUp says the next thing in the place of a client that has left.
func (s *server) cleanUp() {
	for _, ok := s.link.Local(); ok; _, ok = s.link.Local() { // nobody is there to be told
	}
	switch s.link.Abandon() {
	case session.Wait:
	case session.SayCopyFail:
		_ = s.link.Sent(pgwire.CopyFail)
		s.write(pgwire.AppendCopyFail(nil, "client disconnected"))
		s.cleanUp()
	case session.SayFlush:
		_ = s.link.Sent(pgwire.Flush)
		s.write(pgwire.AppendFlush(nil))
	case session.SaySync:
		_ = s.link.Sent(pgwire.Sync)
		s.write(pgwire.AppendSync(nil))
	case session.SayRollback:
		s.run(taskAbandon, "ROLLBACK")
	case session.GiveUp:
		s.discard(pool.ClientLeftQuerying)
	case session.Done:
		s.task = taskNone
		s.p.loop.Unset(&s.timer)
		s.awaitsCancels = s.cancels > 0
		switch q := s.pooled.route.ResetQuery; {
		case s.awaitsCancels:
		case s.inDoubt:
			s.discard(pool.ObsoleteConnection)
		case q != "":
			s.run(taskReset, q)
		default:
			s.ready()
		}
	}
}
