package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/pgberth/pgberth/pkg/config"
	"github.com/pgberth/pgberth/pkg/proxy"
)

// serve runs the pooler until a signal ends it.
func serve(in config.Input, cfg *config.Config, stderr io.Writer) error {
	logs, closeLog, err := openLog(cfg, stderr)
	if err != nil {
		return err
	}
	defer closeLog()
	level := new(slog.LevelVar)
	log := newLogger(cfg, logs, level)

	set, err := settings(cfg)
	if err != nil {
		return err
	}
	// Before listening, so that an early signal is not lost and does not kill.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	announce(log, cfg)
	p, err := proxy.New(set, log)
	if err != nil {
		return err
	}
	if err := p.Listen(); err != nil {
		return err
	}
	for _, a := range p.Addrs() {
		log.Info("listening", "network", a.Network(), "addr", a.String())
	}
	web, err := startHTTP(cfg, p, log)
	if err != nil {
		return err
	}
	defer web.close()
	removePID, err := writePID(cfg.Process.PIDFile)
	if err != nil {
		return err
	}
	defer removePID()

	done := make(chan error, 1)
	go func() { done <- p.Run() }()
	for {
		select {
		case err := <-done:
			log.Info("stopped")
			return err
		case s := <-signals:
			if s != syscall.SIGHUP {
				log.Info("got signal", "signal", s.String())
				p.Drain(cfg.Timeouts.Drain)
				continue
			}
			cfg = reload(in, cfg, p, log, level)
		}
	}
}

// reload reads the configuration again. A broken one changes nothing.
func reload(in config.Input, cfg *config.Config, p *proxy.Proxy, log *slog.Logger, level *slog.LevelVar) *config.Config {
	log.Info("got SIGHUP, re-reading config")
	fresh, err := config.Load(in)
	if err != nil {
		log.Error("reload failed, the old configuration stays in force", "error", err)
		return cfg
	}
	next, changes := cfg.Reload(fresh)
	set, err := settings(next)
	if err != nil {
		log.Error("reload failed, the old configuration stays in force", "error", err)
		return cfg
	}
	level.Set(next.Log.Slog())
	p.Reload(set)
	log.Info("reloaded", "applied", changes.Applied)
	if len(changes.NeedRestart) > 0 {
		log.Warn("settings that need a restart keep their old values", "settings", changes.NeedRestart)
	}
	return next
}

// announce says once what an operator should know of this configuration.
func announce(log *slog.Logger, cfg *config.Config) {
	log.Info("starting", "version", versionLine(), "config", cfg.File(), "pid", os.Getpid())
	if os.Geteuid() == 0 {
		log.Warn("running as root: give the process a user of its own")
	}
	for _, n := range cfg.Notes() {
		log.Warn("configuration note", "note", n)
	}
	for _, key := range cfg.Inert() {
		log.Warn("setting has no effect yet", "setting", key)
	}
}

func openLog(cfg *config.Config, stderr io.Writer) (io.Writer, func(), error) {
	if cfg.Log.File == "" {
		return stderr, func() {}, nil
	}
	f, err := os.OpenFile(cfg.Log.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("logfile: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}

func newLogger(cfg *config.Config, w io.Writer, level *slog.LevelVar) *slog.Logger {
	level.Set(cfg.Log.Slog())
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func writePID(path string) (func(), error) {
	if path == "" {
		return func() {}, nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil
}
