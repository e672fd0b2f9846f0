package architecture

import "slices"

const module = "github.com/pgberth/pgberth"

// A rule says what one package must never import, and why.
//
// A pattern is an import path; a final "/..." takes everything below it too. Patterns that start with "pkg/" are our own
// packages. The standard library is looked for among a package's own imports only (fmt itself imports os); our own
// packages and those of others are looked for among everything that gets linked.
type rule struct {
	pkg    string // relative to the module, as in "pkg/pool"
	forbid []string
	why    string
}

// Names for what comes from elsewhere, so that a rule reads like the sentence it enforces.
const (
	kubernetes        = "k8s.io/..."
	controllerRuntime = "sigs.k8s.io/..."
	prometheus        = "github.com/prometheus/..."
	viper             = "github.com/spf13/viper"
	grpc              = "google.golang.org/grpc/..."
	systemCalls       = "golang.org/x/sys/..."
	others            = "anything that is neither ours nor the standard library's"
)

// The standard library's ways to touch the world. A pure package uses none: its input and its time are arguments.
var world = []string{"net", "net/http/...", "os/...", "log/...", "syscall", "crypto/rand", systemCalls}

// packages are all there may be under pkg, each with the kind of thing it is. A new one is entered here first, with its rule.
var packages = map[string]kind{
	"pgwire":      pure,
	"session":     pure,
	"scram":       pure,
	"pool":        pure,
	"lease":       pure,
	"inject":      pure,
	"eventloop":   shell,
	"proxy":       shell,
	"leaserpc":    shell,
	"coordinator": shell,
	"webhook":     shell,
	"admin":       shell,
	"metrics":     shell,
	"config":      shell,
	"pgtest":      shell,
}

type kind int

const (
	shell kind = iota
	pure       // reads no clock, starts no goroutine, opens no socket, logs nothing
)

func rules() []rule {
	table := []rule{
		{"pkg/pgwire", slices.Concat(world, []string{"sync/...", "pkg/pool", "pkg/session", "pkg/proxy"}),
			"framing must be fuzzable on bytes alone"},
		{"pkg/session", slices.Concat(world, []string{"sync/...", "time", "context", "pkg/pool", "pkg/proxy"}),
			"a transcript decides its state, so it must not be able to reach for connections, timers or locks"},
		{"pkg/scram", slices.Concat(world, []string{"pkg/config", "pkg/proxy"}),
			"the published vectors alone test it"},
		{"pkg/pool", slices.Concat(world, []string{"sync/...", "context", "pkg/pgwire", "pkg/lease", "pkg/proxy", prometheus}),
			"a pool does not know why its capacity changes, and one loop owns it, so it needs no lock"},
		{"pkg/lease", slices.Concat(world, []string{"sync/...", "context", others}),
			"both ends of the protocol must be replayable from a text file"},
		{"pkg/inject", slices.Concat(world, []string{"k8s.io/client-go/...", controllerRuntime}),
			"the same pod and policy give the same bytes"},

		{"pkg/eventloop", []string{"pkg/pgwire", "pkg/session", "pkg/pool", "pkg/scram", "pkg/proxy", "pkg/config"},
			"the loop knows bytes, not Postgres"},
		{"pkg/proxy", []string{kubernetes, controllerRuntime, viper, prometheus, grpc, "pkg/lease", "pkg/leaserpc", "pkg/metrics"},
			"the pooler does not know that leases, dashboards or Kubernetes exist; capacity arrives as a number"},
		{"pkg/leaserpc", []string{kubernetes, controllerRuntime, "pkg/coordinator", "pkg/pool"},
			"lease messages travel without Kubernetes and without a pool"},
		{"pkg/coordinator", []string{"pkg/proxy", "pkg/pool", "pkg/inject"},
			"the coordinator deals in numbers and never depends on the pooler"},
		{"pkg/webhook", []string{"pkg/proxy", "pkg/lease"},
			"a webhook outage must never stop leases, nor the other way round"},
		{"pkg/admin", []string{"net", "net/http/...", "pkg/pgwire"},
			"rows in, rows out: the console is tested without a connection"},
		{"pkg/pgtest", []string{"pkg/proxy", "pkg/pool"},
			"test support that shares code with what it tests would share its mistakes"},

		{"cmd/sidecar", []string{kubernetes, controllerRuntime, "pkg/coordinator", "pkg/inject", "pkg/webhook", "pkg/pgtest"},
			"the sidecar runs in every pod: its size and memory are product features"},
	}
	// config is a leaf, and so is lease: neither may know any other package of ours.
	for _, leaf := range []string{"config", "lease"} {
		var siblings []string
		for name := range packages {
			if name != leaf {
				siblings = append(siblings, "pkg/"+name)
			}
		}
		slices.Sort(siblings)
		table = append(table, rule{"pkg/" + leaf, siblings, "it is a leaf: anybody may import it without a cycle"})
	}
	// One importer each, so that replacing what is imported means changing one package.
	for name := range packages {
		if name != "config" {
			table = append(table, rule{"pkg/" + name, []string{viper}, "only config reads files, environment and flags; others get their own typed settings"})
		}
	}
	return table
}
