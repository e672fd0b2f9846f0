package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/pgberth/pgberth/pkg/config"
	"github.com/pgberth/pgberth/pkg/metrics"
	"github.com/pgberth/pgberth/pkg/proxy"
)

// healthTimeout is how long the relay may take to answer a probe: it is asked between two turns of its loop.
const healthTimeout = 2 * time.Second

type httpServer struct{ server *http.Server }

// startHTTP serves health and metrics. The listeners of the pooler are open already: ready means listening.
func startHTTP(cfg *config.Config, p *proxy.Proxy, log *slog.Logger) (*httpServer, error) {
	if cfg.HTTP.Addr == "" {
		return &httpServer{}, nil
	}
	ln, err := net.Listen("tcp", cfg.HTTP.Addr)
	if err != nil {
		// Two poolers on one machine should both start, if nobody has asked for this very port.
		if errors.Is(err, syscall.EADDRINUSE) && cfg.Origin("http_addr").Source == config.FromDefault {
			log.Warn("http_addr is in use, health and metrics are off", "addr", cfg.HTTP.Addr)
			return &httpServer{}, nil
		}
		return nil, fmt.Errorf("http_addr: %w", err)
	}
	log.Info("serving health and metrics", "addr", ln.Addr().String())
	mux := http.NewServeMux()
	alive := func(w http.ResponseWriter, r *http.Request) {
		ctx, stop := context.WithTimeout(r.Context(), healthTimeout)
		defer stop()
		if _, err := p.Snapshot(ctx); err != nil {
			http.Error(w, "the relay does not answer: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	}
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /readyz", alive)
	mux.Handle("GET /metrics", metrics.Handler(p.Snapshot, versionLine()))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() { _ = s.Serve(ln) }()
	return &httpServer{s}, nil
}

func (h *httpServer) close() {
	if h.server != nil {
		_ = h.server.Close()
	}
}

// healthz asks the running sidecar of the same configuration.
func healthz(cfg *config.Config) error {
	host, port, err := net.SplitHostPort(cfg.HTTP.Addr)
	if err != nil {
		return fmt.Errorf("http_addr: %q is not host:port, so there is nothing to ask", cfg.HTTP.Addr)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	client := http.Client{Timeout: healthTimeout + time.Second}
	resp, err := client.Get("http://" + net.JoinHostPort(host, port) + "/readyz")
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", resp.Status)
	}
	return nil
}
