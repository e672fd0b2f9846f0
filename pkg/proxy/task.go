package proxy

import (
	"slices"
	"strings"

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
	// taskProbe asks what a client has left in its session.
	taskProbe
	// taskRepeat waits until a batch that failed is over, to say it again.
	taskRepeat
	// taskPause waits for cancel requests under way before it asks.
	taskPause
	// taskClean drops what clients have left in their session.
	taskClean
	// taskLookup runs auth_query.
	taskLookup
)

// run has the server connection do a query of the pooler's own. The connection is idle.
func (s *server) run(t task, sql string) {
	s.task = t
	s.failed = nil
	_ = s.link.Sent(pgwire.Query) // always allowed
	s.write(pgwire.AppendQuery(nil, sql))
	s.expected()
}

// expected gives the server the time that a login may take for an answer to what only the pooler has asked.
func (s *server) expected() {
	limit := s.p.set.ServerConnectTimeout
	if limit <= 0 || s.task != taskProbe && s.task != taskParams && s.task != taskClean {
		return
	}
	s.p.loop.Set(&s.timer, s.p.loop.Now()+limit, func() {
		c := s.client
		s.discard(pool.TestFailed)
		if c != nil {
			c.lostServer(false, "the server does not answer")
		}
		s.p.settle()
	})
}

// adapt sets the parameters of a client's session in which the connection differs.
func (s *server) adapt(want session.Params) {
	missing, surplus := s.params.Missing(want), s.params.Surplus(want)
	if here, _ := s.params.Get("client_encoding"); !s.recoded {
		there, asked := want.Get("client_encoding")
		if s.recoded = asked && here != there && (!s.params.ASCII() || !want.ASCII()); s.recoded {
			// The rest is written in it, so it comes first.
			s.run(taskParams, session.SetStatements([]pgwire.Parameter{{Name: "client_encoding", Value: there}}))
			return
		}
	} else {
		s.recoded = false
		for _, kv := range want.All() { // the same bytes were another text
			if _, had := s.params.Get(kv.Name); had && !session.ASCII(kv.Value) && !slices.Contains(missing, kv) {
				missing = append(missing, kv)
			}
		}
	}
	// A role may be less than what the rest takes: it goes first and comes last.
	before, after := "", ""
	if _, has := s.params.Get(roleParameter); has {
		before = session.ResetStatements([]string{roleParameter})
		surplus = slices.DeleteFunc(surplus, func(name string) bool { return name == roleParameter })
	}
	if role, asked := want.Get(roleParameter); asked {
		after = session.SetStatements([]pgwire.Parameter{{Name: roleParameter, Value: role}})
		missing = slices.DeleteFunc(missing, func(kv pgwire.Parameter) bool { return kv.Name == roleParameter })
	}
	s.run(taskParams, before+session.SetStatements(missing)+session.ResetStatements(surplus)+after)
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
	if s.task == taskProbe || s.task == taskParams || s.task == taskClean {
		s.p.loop.Unset(&s.timer)
	}
	switch s.task {
	case taskAbandon:
		s.cleanUp()
		return
	case taskPause: // not in answer to anything
		return
	case taskProbe:
		s.task = taskNone
		if s.client == nil {
			s.dirty = true
			s.cleanUp()
			return
		}
		s.probed()
		return
	case taskRepeat:
		s.task = taskNone
		if s.client == nil {
			s.cleanUp()
			return
		}
		s.client.repeat()
		return
	case taskLookup:
		if !s.link.Busy() {
			s.lookedUp()
		}
		return
	case taskParams:
		s.task = taskNone
		c := s.client
		if s.failed != nil {
			// The client asked for a value the server does not take.
			why := *s.failed
			s.recoded = false
			s.discard(pool.ParameterChangeFailed)
			if c != nil {
				c.fail(why.Code, "invalid server parameter: "+why.Message)
				c.linger("invalid server parameter")
			}
			return
		}
		if c != nil && s.recoded {
			s.adapt(c.params)
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
	case taskClean:
		s.task = taskNone
		if s.failed != nil || !s.link.Idle() {
			s.discard(pool.ResetFailed)
			return
		}
		s.cleaned()
		s.ready()
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
		if q := strings.ToUpper(s.pooled.route.ResetQuery); t == taskReset && (strings.Contains(q, "DISCARD ALL") || strings.Contains(q, "RESET ALL")) {
			s.cleaned()
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
func (s *server) ready() {
	s.pb.Like = s.params
	s.p.pools.Ready(s.p.now(), s.pb)
}

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
	if s.link.Idle() && s.task == taskNone && !s.dirty {
		s.release()
		return
	}
	s.p.pools.Unlink(s.p.now(), s.pb)
	// Nobody holds up reading any more, and what is there to be read is not announced again.
	s.p.loop.Again(&s.conn.Conn)
	if s.task == taskNone || s.task == taskParams || s.task == taskPause {
		s.p.loop.Unset(&s.timer)
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
	s.pb.Like = s.params
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
		case s.dirty:
			s.clean()
		case q != "":
			s.run(taskReset, q)
		default:
			s.ready()
		}
	}
}
