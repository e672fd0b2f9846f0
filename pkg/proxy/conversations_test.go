package proxy

import (
	"testing"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
)

// conversationServer is the shared PostgreSQL with a database that the conversations may do anything to.
func conversationServer(t *testing.T) *pgtest.Server {
	t.Helper()
	s := pgtest.Shared(t)
	for _, sql := range []string{"drop database if exists conversations with (force)", "create database conversations"} {
		if err := s.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// conversationsThroughProxy holds the dialogues of testdata/conversations, whose transcripts are PostgreSQL's own: pgtest
// proves that.
func conversationsThroughProxy(t *testing.T, size int, mode pool.Mode) {
	t.Helper()
	s := conversationServer(t)
	p := pooledPostgres(t, func(r *Route) {
		r.DBName, r.Pool.Size, r.Pool.Mode = "conversations", size, mode
		if mode == pool.Session {
			r.ResetQuery, r.Pool.Reset = "DISCARD ALL", true
		}
	})
	pgtest.RunConversations(t, "testdata/conversations", pgtest.Target{
		Name: "sidecar", Addr: p.Addr, User: pgtest.User, Password: pgtest.Password, Database: "conversations",
		Session: mode == pool.Session, Backends: size, Aside: s.Addr(),
	})
	p.await("nothing is left of the clients", func(s Snapshot) bool { return s.Clients == 0 && s.BuffersLent == 0 })
}

func TestConversationsOverOneServerConnection(t *testing.T) {
	conversationsThroughProxy(t, 1, pool.Transaction)
}

func TestConversationsOverThreeServerConnections(t *testing.T) {
	conversationsThroughProxy(t, 3, pool.Transaction)
}

func TestConversationsInSessionMode(t *testing.T) {
	conversationsThroughProxy(t, 5, pool.Session)
}
