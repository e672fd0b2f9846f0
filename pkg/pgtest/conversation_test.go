package pgtest

import "testing"

// The same files are held with the pooler by its own tests.
func TestPostgreSQLSaysWhatTheConversationsExpect(t *testing.T) {
	CheckLeaks(t)
	s := Start(t, Options{})
	RunConversations(t, "../proxy/testdata/conversations", Target{Name: "postgres", Addr: s.Addr(), User: User, Database: Database})
}
