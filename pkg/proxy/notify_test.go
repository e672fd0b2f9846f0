package proxy

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// PostgreSQL says it before ReadyForQuery, and often in the same packet: the client must not lose it to the question that
// LISTEN causes.
func TestANotificationThatComesWithTheAnswerToAQuestionReachesItsClient(t *testing.T) {
	f := pgtest.NewFake(t, func(c *pgtest.FakeConn) {
		c.Login()
		for {
			sql := c.Query()
			if !strings.Contains(sql, "pg_listening_channels") {
				c.Answer(sql)
				continue
			}
			c.Send(&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: "before"})
			c.Send(&pgproto3.RowDescription{})
			c.Row("f", "f", "f", "f", "t", pgtest.User)
			c.Complete("SELECT 1")
			var last []byte
			for _, m := range []pgproto3.BackendMessage{
				&pgproto3.NotificationResponse{PID: 7, Channel: "news", Payload: "behind"}, &pgproto3.ReadyForQuery{TxStatus: 'I'},
			} {
				last, _ = m.Encode(last)
			}
			c.Raw(last[:9])
			c.Raw(last[9:])
		}
	})
	p := startProxy(t, testSettings("127.0.0.1", f.Port(), nil))
	c := p.call()
	c.must("listen news")
	for _, want := range []string{"before", "behind"} {
		if m := until[*pgproto3.NotificationResponse](c); m.Payload != want {
			t.Errorf("got %q, want %q", m.Payload, want)
		}
	}
	p.await("it is pinned", func(s Snapshot) bool { return len(s.Pools) == 1 && s.Pools[0].Stats.Active == 1 })
	if got := c.must("select 1"); got != "select 1" {
		t.Errorf("the next answer is %q", got)
	}
}
