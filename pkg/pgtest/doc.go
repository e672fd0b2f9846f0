// Package pgtest is test support: real PostgreSQL servers that start in a moment (Start, Shared, Launch), dialogues with
// them written as text files (RunConversations), a fake server that misbehaves as told (NewFake), and a check that a test
// left no goroutine and no file descriptor behind (CheckLeaks).
//
// It refuses to skip: where no PostgreSQL is found the test fails and says how to install it. It refuses to share code
// with what it tests: messages are pgproto3's, and nothing of ours is imported. It is not for production use; programs
// that demonstrate or measure may use Launch.
package pgtest
