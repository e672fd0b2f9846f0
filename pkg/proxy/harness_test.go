package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/session"
)

// pooler is a running proxy under test.
type pooler struct {
	*Proxy
	t    *testing.T
	Addr string
	logs *logBuffer

	ended chan struct{} // closed when Run has returned
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// testRoute sends every database to the server at host:port as the superuser of the test servers.
func testRoute(host string, port int, edit func(*Route)) func(database, user string) (Route, bool) {
	return func(database, user string) (Route, bool) {
		if database == "nowhere" {
			return Route{}, false
		}
		r := Route{
			Database: database, User: pgtest.User, Hosts: []string{host}, Port: port, DBName: pgtest.Database, Password: pgtest.Password,
			Pool: pool.Settings{
				Mode: pool.Transaction, Size: 5, QueryWaitTimeout: 20 * time.Second, ServerLifetime: time.Hour,
				ServerIdleTimeout: time.Minute, CheckDelay: 30 * time.Second, Check: true, MaxConnecting: 4, LoginRetry: time.Second,
			},
		}
		if edit != nil {
			edit(&r)
		}
		return r, true
	}
}

// testReader is made once: it is never changed.
var testReader = session.NewReader(nil, nil)

// testSettings are those of a trusting transaction pooler before the server at host:port.
func testSettings(host string, port int, edit func(*Route)) *Settings {
	return &Settings{
		Listeners: []Listener{{TCP: netip.MustParseAddrPort("127.0.0.1:0"), Backlog: 1024}},
		Auth:      Trust, MaxClients: 10000, ScramIterations: 4096,
		Route: testRoute(host, port, edit), Tracked: []string{"IntervalStyle"}, IgnoreStartup: []string{"extra_float_digits"},
		ClientLoginTimeout: 20 * time.Second, ServerConnectTimeout: 10 * time.Second, ServerCloseTimeout: 5 * time.Second,
		CancelWaitTimeout: 10 * time.Second, MaxPacketSize: 1<<31 - 1, MaxPrepared: 3,
		Reader: testReader,
	}
}

// startProxy runs a proxy until the test ends, and checks then that Run returns.
func startProxy(t *testing.T, set *Settings) *pooler {
	t.Helper()
	logs := &logBuffer{}
	if *encryptedRun {
		encrypt(set)
	}
	p, err := New(set, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	pl := &pooler{Proxy: p, t: t, logs: logs, ended: make(chan struct{})}
	for _, a := range p.Addrs() {
		if a.Network() == "tcp" {
			pl.Addr = a.String()
			if *encryptedRun {
				pl.Addr = newBridge(t, pl.Addr).Addr().String()
			}
		}
	}
	done := make(chan error, 1)
	go func() {
		defer close(pl.ended)
		done <- p.Run()
	}()
	t.Cleanup(func() {
		p.Stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("Run did not return within 15 s of Stop")
		}
		if t.Failed() {
			t.Logf("proxy log:\n%s", logs)
		}
	})
	return pl
}

// pooledPostgres starts a proxy before the shared PostgreSQL.
func pooledPostgres(t *testing.T, edit func(*Route)) *pooler {
	t.Helper()
	s := pgtest.Shared(t)
	return startProxy(t, testSettings(s.Host, s.Port, edit))
}

// connect opens a session with pgx in simple protocol.
func (p *pooler) connect(options ...func(*pgx.ConnConfig)) *pgx.Conn {
	p.t.Helper()
	cfg, err := pgx.ParseConfig("postgres://app:secret@" + p.Addr + "/app?sslmode=disable")
	if err != nil {
		p.t.Fatal(err)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	for _, o := range options {
		o(cfg)
	}
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	c, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		p.t.Fatalf("connect: %v", err)
	}
	p.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// state takes a snapshot.
func (p *pooler) state() Snapshot {
	p.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	s, err := p.Snapshot(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// await waits until cond holds of a snapshot.
func (p *pooler) await(what string, cond func(Snapshot) bool) Snapshot {
	p.t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		s := p.state()
		if cond(s) {
			return s
		}
		select {
		case <-deadline:
			p.t.Fatalf("not seen within 15 s: %s; last %+v", what, s)
		case <-time.After(time.Millisecond):
		}
	}
}

// postgresWith is pooledPostgres with all settings to edit, for every login anew.
func postgresWith(t *testing.T, edit func(*Settings, *Route)) *pooler {
	t.Helper()
	return startProxy(t, postgresSettings(t, edit))
}

func postgresSettings(t *testing.T, edit func(*Settings, *Route)) *Settings {
	t.Helper()
	s := pgtest.Shared(t)
	set := testSettings(s.Host, s.Port, nil)
	edit(set, &Route{})
	set.Route = testRoute(s.Host, s.Port, func(r *Route) { edit(&Settings{}, r) })
	return set
}
