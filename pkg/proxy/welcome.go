package proxy

import (
	"slices"

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
	for _, kv := range pl.welcome.All() {
		if name, ok := names.Canonical(kv.Name); ok {
			if v, asked := want.Get(name); asked {
				kv.Value = v
			}
			tracked = append(tracked, pgwire.Parameter{Name: name, Value: kv.Value})
		}
		g.packets = pgwire.AppendParameterStatus(g.packets, kv.Name, kv.Value)
	}
	// Over what was asked for, which may be what this server does not report.
	g.tracked = want.Over(session.MakeParams(tracked))
	for _, kv := range want.All() {
		if !slices.ContainsFunc(tracked, func(t pgwire.Parameter) bool { return t.Name == kv.Name }) {
			g.packets = pgwire.AppendParameterStatus(g.packets, kv.Name, kv.Value)
		}
	}
	return g
}
