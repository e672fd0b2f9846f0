package proxy

import (
	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/session"
)

// greeting is what a client is told when its login has succeeded, up to its cancel key. It is kept per pool, because
// the clients of a pool mostly ask for the same.
type greeting struct {
	// What it was made from.
	welcome, want session.Params
	names         *session.Tracked

	packets []byte         // AuthenticationOk and ParameterStatus messages
	tracked session.Params // what the client's session begins with
}

// greet words the welcome of a client that asked for want.
func (pl *pooled) greet(want session.Params, names *session.Tracked) *greeting {
	g := &pl.greeting
	if g.packets != nil && g.welcome == pl.welcome && g.want == want && g.names == names {
		return g
	}
	*g = greeting{welcome: pl.welcome, want: want, names: names}
	g.packets = pgwire.AppendAuth(nil, pgwire.AuthOK, nil)
	var tracked []pgwire.Parameter
	for _, kv := range pl.welcome.Over(want).All() {
		g.packets = pgwire.AppendParameterStatus(g.packets, kv.Name, kv.Value)
		if name, ok := names.Canonical(kv.Name); ok {
			tracked = append(tracked, pgwire.Parameter{Name: name, Value: kv.Value})
		}
	}
	g.tracked = session.MakeParams(tracked)
	return g
}
