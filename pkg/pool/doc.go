// Package pool decides which client gets which database server connection.
//
// It is pure: it reads no clock, starts no goroutine, takes no lock, opens no socket and logs nothing. It does not know
// why a capacity changes, what a query is, or what travels over a backend; it never closes anything by itself. Time
// and events come in as method calls, and what must be done about them is handed out by [Pools.Effects].
//
// The caller's duties, in this order for every call:
//
//  1. Pass a time that never goes backwards.
//  2. After each call drain Effects and carry every effect out, in order. Effects may concern other pools than the one
//     called: pools share the capacity of their server and the limits of their database and user.
//  3. Call Tick no later than the time Next returns.
//  4. Report every backend's end with Closed (or OpenFailed) only when the server's slot is proved free: until then
//     the backend counts in every limit.
//
// Calls that make no sense in the present state (releasing an idle backend, acquiring twice) are bugs in the caller
// and panic with a sentence. The only error is the one of Connect.
//
// A backend's life: Open makes it Opening; Opened makes it Idle or, when somebody waits, Active; Release leads to the
// next waiter, to Idle, or through Testing (a reset query) there; an idle backend that was idle for long goes through
// Testing (a check query) before it is lent again; Closing is the end and lasts until Closed.
package pool
