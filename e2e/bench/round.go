package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

const (
	stormCase  = "storm"
	largeCase  = "large"
	memoryCase = "memory"
)

// short are the beginnings of cases' names, by pgbench's name of the protocol.
var short = map[string]string{"simple": "simple", "extended": "ext", "prepared": "prep"}

// overTLS begins the names of cases in which the connections to the server are encrypted, and those of clients are not.
const overTLS = "tls"

// relayCases by name: "simple-16" is pgbench's simple protocol with 16 clients.
func relayCases() (names []string, cases map[string]relayCase) {
	cases = map[string]relayCase{}
	for _, protocol := range []string{"simple", "extended", "prepared"} {
		for _, clients := range []int{1, 16, 64, 200} {
			name := fmt.Sprintf("%s-%d", short[protocol], clients)
			names = append(names, name)
			cases[name] = relayCase{protocol: protocol, clients: clients}
		}
	}
	for _, clients := range []int{1, 16, 64, 200} {
		name := fmt.Sprintf("%s-%d", overTLS, clients)
		names = append(names, name)
		cases[name] = relayCase{protocol: "simple", clients: clients, tls: true}
	}
	return names, cases
}

func caseNames() []string {
	names, _ := relayCases()
	return append(names, stormCase, largeCase, memoryCase)
}

// round measures every case at every target once, with poolers started for this round.
func (l *lab) round(ctx context.Context, s settings, round int, turn []string, r *results) error {
	relayNames, relays := relayCases()
	wanted := func(name string) bool { return slices.Contains(s.cases, name) }

	measure := func(name string, targets []string, f func(target string) (sample, error)) error {
		if !wanted(name) {
			return nil
		}
		for _, target := range targets {
			found, err := f(target)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, target, err)
			}
			r.add(name, target, round, found)
			fmt.Fprintf(os.Stderr, "round %d/%d  %-10s %-16s %s\n", round+1, s.rounds, name, target, found)
		}
		return nil
	}

	// Memory first: nothing else runs then.
	poolers := slices.DeleteFunc(slices.Clone(turn), func(name string) bool { return name == directTarget })
	if err := measure(memoryCase, poolers, func(target string) (sample, error) { return l.memory(ctx, target) }); err != nil {
		return err
	}

	if slices.ContainsFunc(relayNames, wanted) || wanted(largeCase) {
		trusting, err := l.warm(ctx, turn, "disable")
		if err != nil {
			return err
		}
		defer trusting.stop()
		encrypting := fleet{}
		if slices.ContainsFunc(relayNames, func(name string) bool { return relays[name].tls && wanted(name) }) {
			if encrypting, err = l.warm(ctx, turn, "require"); err != nil {
				return err
			}
			defer encrypting.stop()
		}
		for _, name := range relayNames {
			at := trusting
			if relays[name].tls {
				at = encrypting
			}
			if err := measure(name, turn, func(target string) (sample, error) {
				return l.relay(ctx, relays[name], at[target], s.duration)
			}); err != nil {
				return err
			}
		}
		if err := measure(largeCase, turn, func(target string) (sample, error) { return l.large(ctx, trusting[target]) }); err != nil {
			return err
		}
	}

	if !wanted(stormCase) {
		return nil
	}
	asking, err := l.startAll(ctx, turn, "scram-sha-256", "disable")
	if err != nil {
		return err
	}
	defer asking.stop()
	// Logins are the question, not how soon a pool has opened its backends: PostgreSQL forks for tens of milliseconds each.
	for _, target := range turn {
		if _, err := l.storm(ctx, asking[target], time.Second); err != nil {
			return fmt.Errorf("warming up %s: %w", target, err)
		}
	}
	return measure(stormCase, turn, func(target string) (sample, error) { return l.storm(ctx, asking[target], s.duration) })
}

// warm starts the targets with this server_tls_sslmode, and has them open their server connections.
func (l *lab) warm(ctx context.Context, turn []string, sslmode string) (fleet, error) {
	f, err := l.startAll(ctx, turn, "trust", sslmode)
	if err != nil {
		return nil, err
	}
	for _, target := range turn {
		if _, err := l.relay(ctx, relayCase{protocol: "simple", clients: poolSize}, f[target], time.Second); err != nil {
			f.stop()
			return nil, fmt.Errorf("warming up %s: %w", target, err)
		}
	}
	return f, nil
}
