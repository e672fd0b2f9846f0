package pool

// EffectKind says what the caller must do.
type EffectKind uint8

const (
	// Open asks for a new server connection for Backend; answer with Opened or OpenFailed.
	Open EffectKind = iota + 1
	// Link says that Client now owns Backend, until Release, Unlink or Discard.
	Link
	// Check asks for the check query on Backend; answer with Ready or Discard.
	Check
	// Reset asks for the reset query on Backend; answer with Ready or Discard.
	Reset
	// Close asks to close Backend politely; answer with Closed when the server has let go of it.
	Close
	// Kill asks to end Backend now: cancel its query, tell its Client (nil if it had none), close it, answer with
	// Closed. The client is unlinked already. A backend that was still opening is killed by giving the attempt up.
	Kill
	// Fail says that Client, which was waiting, gets no backend. It has left the queue and stays connected.
	Fail
)

var effectNames = [...]string{"none", "open", "link", "check", "reset", "close", "kill", "fail"}

func (k EffectKind) String() string { return effectNames[k] }

// Effect is one thing the caller must do.
type Effect struct {
	Kind    EffectKind
	Client  *Client
	Backend *Backend
	Reason  Reason
}

// keepEffects bounds the memory kept between calls after one call that had an unusual number of effects.
const keepEffects = 1024

// Effects returns what the calls since the last Effects ask for, in order, and forgets it. The slice is valid until
// the next call of Effects (other methods may be called while walking it), after which it is zeroed: handle all of it
// before asking again, do not ask from inside the loop.
func (ps *Pools) Effects() []Effect {
	out, spare := ps.effects, ps.drained
	clear(spare) // keeps no client alive, and makes use after the next call show at once
	if cap(spare) > keepEffects {
		spare = nil
	}
	ps.effects, ps.drained = spare[:0], out
	return out
}

func (ps *Pools) emit(e Effect) { ps.effects = append(ps.effects, e) }
