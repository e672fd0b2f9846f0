package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/proxy"
)

func picture(context.Context) (proxy.Snapshot, error) {
	return proxy.Snapshot{
		Counters: proxy.Counters{Accepted: 7, Logins: 5, LoginFailures: 2},
		Clients:  3,
		Pools: []proxy.PoolSnapshot{{
			Key:      pool.Key{Database: "shop", User: "app"},
			Settings: pool.Settings{Size: 20},
			Stats:    pool.Stats{Clients: 3, Waiting: 1, Idle: 2, Active: 1},
			Counts:   proxy.PoolCounters{Transactions: 11, WaitTime: 1500 * time.Millisecond},
		}},
	}, nil
}

func TestEveryMetricIsNamedAsPrometheusAdvises(t *testing.T) {
	problems, err := testutil.CollectAndLint(&sidecar{take: picture, version: "v"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestAScrapeShowsTheSnapshot(t *testing.T) {
	want := `
# HELP pgberth_client_logins_total Client logins that succeeded.
# TYPE pgberth_client_logins_total counter
pgberth_client_logins_total 5
# HELP pgberth_pool_clients Logged-in clients by state.
# TYPE pgberth_pool_clients gauge
pgberth_pool_clients{database="shop",state="active",user="app"} 2
pgberth_pool_clients{database="shop",state="waiting",user="app"} 1
# HELP pgberth_transactions_total Transactions finished.
# TYPE pgberth_transactions_total counter
pgberth_transactions_total{database="shop",user="app"} 11
# HELP pgberth_wait_seconds_total Time clients waited for a server connection.
# TYPE pgberth_wait_seconds_total counter
pgberth_wait_seconds_total{database="shop",user="app"} 1.5
`
	err := testutil.CollectAndCompare(&sidecar{take: picture, version: "v"}, strings.NewReader(want),
		"pgberth_client_logins_total", "pgberth_pool_clients", "pgberth_transactions_total", "pgberth_wait_seconds_total")
	if err != nil {
		t.Error(err)
	}
}

func TestARelayThatDoesNotAnswerIsDown(t *testing.T) {
	silent := func(context.Context) (proxy.Snapshot, error) { return proxy.Snapshot{}, errors.New("stopped") }
	w := httptest.NewRecorder()
	Handler(silent, "v").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(body), "\npgberth_up 0\n") || strings.Contains(string(body), "pgberth_pool") {
		t.Errorf("a scrape says:\n%s", body)
	}
}
