// Package metrics turns snapshots into Prometheus metrics. The whole catalog is here.
//
// It refuses to count anything itself: the cores keep plain numbers, and a scrape reads them once.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/proxy"
	"github.com/pgberth/pgberth/pkg/session"
)

// scrapeTimeout is how long the relay may take to answer a scrape.
const scrapeTimeout = 5 * time.Second

// Snapshot takes a picture of a proxy.
type Snapshot func(context.Context) (proxy.Snapshot, error)

// Handler serves a sidecar's metrics in Prometheus' formats.
func Handler(take Snapshot, version string) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		&sidecar{take: take, version: version},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 2 * scrapeTimeout})
}

type sidecar struct {
	take    Snapshot
	version string
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pgberth_"+name, help, labels, nil)
}

var (
	up          = desc("up", "1 when the relay answers.")
	buildInfo   = desc("build_info", "The running version.", "version")
	draining    = desc("draining", "1 while the sidecar waits for its clients to leave.")
	connections = desc("client_connections", "Client connections, logins under way included.")
	lentBuffers = desc("buffers_lent", "Buffers that hold pending bytes.")
	lentBytes   = desc("buffers_lent_bytes", "Size of the buffers that hold pending bytes.")

	accepted      = desc("client_accepted_total", "Client connections accepted.")
	logins        = desc("client_logins_total", "Client logins that succeeded.")
	loginFailures = desc("client_login_failures_total", "Client logins that were refused.")
	waitFailures  = desc("client_wait_failures_total", "Clients that waited for a server connection and got none.")
	violations    = desc("protocol_violations_total", "Connections closed because the peer broke the protocol.", "peer")
	crashes       = desc("server_lost_total", "Server connections lost while a client used them.")
	dials         = desc("server_dials_total", "Attempts to open a server connection.")
	dialFailures  = desc("server_dial_failures_total", "Attempts that failed.")
	dialsByState  = desc("server_connect_failures_total", "Attempts that failed, by the server's SQLSTATE; none where it did not answer with an error.", "sqlstate")
	backpressure  = desc("backpressure_total", "Logins that a server had no room for or did not serve yet, by whom that concerns.", "scope")
	cancels       = desc("cancel_requests_total", "Cancel requests sent to servers.")

	poolClients  = desc("pool_clients", "Logged-in clients by state.", "database", "user", "state")
	poolServers  = desc("pool_servers", "Server connections by state.", "database", "user", "state")
	poolSize     = desc("pool_size", "Most server connections of the pool; 0 is unlimited.", "database", "user")
	poolMaxWait  = desc("pool_oldest_wait_seconds", "How long the oldest waiting client has waited.", "database", "user")
	transactions = desc("transactions_total", "Transactions finished.", "database", "user")
	queries      = desc("queries_total", "Queries answered; a pipelined batch is one.", "database", "user")
	assignments  = desc("server_assignments_total", "Times a client was given a server connection.", "database", "user")
	received     = desc("received_bytes_total", "Bytes read from clients.", "database", "user")
	sent         = desc("sent_bytes_total", "Bytes read from servers.", "database", "user")
	xactSeconds  = desc("transaction_seconds_total", "Time in transactions, queueing included.", "database", "user")
	querySeconds = desc("query_seconds_total", "Time in queries, queueing included.", "database", "user")
	pinned       = desc("pool_pinned_clients", "Clients that keep a server connection because of what they have in their session.", "database", "user")
	pins         = desc("pins_total", "Times a client began to keep its server connection.", "database", "user", "reason")
	pinsRefused  = desc("pins_refused_total", "Statements and clients refused because too many clients keep a server connection.", "database", "user")
	repairs      = desc("prepared_repairs_total", "Batches repeated because a prepared statement's result had changed.", "database", "user")
	probes       = desc("session_probes_total", "Questions to servers about what clients left in their sessions.", "database", "user")
	waitSeconds  = desc("wait_seconds_total", "Time clients waited for a server connection.", "database", "user")
)

// Describe implements prometheus.Collector. The collector is unchecked in name only: Collect sends these.
func (s *sidecar) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		up, buildInfo, draining, connections, lentBuffers, lentBytes, accepted, logins, loginFailures, waitFailures, violations,
		crashes, dials, dialFailures, dialsByState, backpressure, cancels, poolClients, poolServers, poolSize, poolMaxWait, transactions, queries,
		assignments, received, sent, xactSeconds, querySeconds, waitSeconds, pinned, pins, pinsRefused, probes, repairs,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sidecar) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(buildInfo, 1, s.version)
	ctx, stop := context.WithTimeout(context.Background(), scrapeTimeout)
	defer stop()
	snap, err := s.take(ctx)
	if err != nil {
		gauge(up, 0)
		return
	}
	gauge(up, 1)
	gauge(draining, boolean(snap.Draining))
	gauge(connections, float64(snap.Clients))
	gauge(lentBuffers, float64(snap.BuffersLent))
	gauge(lentBytes, float64(snap.BytesLent))
	c := snap.Counters
	counter(accepted, float64(c.Accepted))
	counter(logins, float64(c.Logins))
	counter(loginFailures, float64(c.LoginFailures))
	counter(waitFailures, float64(c.WaitFailures))
	counter(violations, float64(c.ProtocolViolations), "client")
	counter(violations, float64(c.ServerViolations), "server")
	counter(crashes, float64(c.ServerCrashes))
	counter(dials, float64(c.Dials))
	counter(dialFailures, float64(c.DialFailures))
	for state, n := range snap.DialFailures {
		counter(dialsByState, float64(n), state)
	}
	for scope, n := range c.Backpressure {
		counter(backpressure, float64(n), pool.Pressure(scope).String())
	}
	counter(cancels, float64(c.Cancels))
	for _, p := range snap.Pools {
		db, user := p.Key.Database, p.Key.User
		gauge(poolClients, float64(p.Stats.Clients-p.Stats.Waiting), db, user, "active")
		gauge(poolClients, float64(p.Stats.Waiting), db, user, "waiting")
		gauge(poolServers, float64(p.Stats.Opening), db, user, "opening")
		gauge(poolServers, float64(p.Stats.Idle), db, user, "idle")
		gauge(poolServers, float64(p.Stats.Active), db, user, "active")
		gauge(poolServers, float64(p.Stats.Testing), db, user, "testing")
		gauge(poolServers, float64(p.Stats.Closing), db, user, "closing")
		gauge(poolSize, float64(p.Settings.Size), db, user)
		gauge(poolMaxWait, p.OldestWait.Seconds(), db, user)
		counter(transactions, float64(p.Counts.Transactions), db, user)
		counter(queries, float64(p.Counts.Queries), db, user)
		counter(assignments, float64(p.Counts.Assignments), db, user)
		counter(received, float64(p.Counts.BytesReceived), db, user)
		counter(sent, float64(p.Counts.BytesSent), db, user)
		counter(xactSeconds, p.Counts.TransactionTime.Seconds(), db, user)
		counter(querySeconds, p.Counts.QueryTime.Seconds(), db, user)
		gauge(pinned, float64(p.Pinned), db, user)
		for i, reason := range session.PinReasons {
			counter(pins, float64(p.Counts.Pins[i]), db, user, reason.Name)
		}
		counter(pinsRefused, float64(p.Counts.PinsRefused), db, user)
		counter(repairs, float64(p.Counts.Repairs), db, user)
		counter(probes, float64(p.Counts.Probes), db, user)
		counter(waitSeconds, p.Counts.WaitTime.Seconds(), db, user)
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
