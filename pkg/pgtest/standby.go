package pgtest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// Replicating are the settings of a server that StartStandby can copy.
var Replicating = map[string]string{"wal_level": "replica", "max_wal_senders": "4"}

// StartStandby launches a standby of a server that was started with the Replicating settings. It follows its primary
// until it is promoted, and is closed when the test ends.
func StartStandby(tb testing.TB, primary *Server, o Options) *Server {
	tb.Helper()
	s, err := launchStandby(tb.Context(), primary, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

func launchStandby(ctx context.Context, primary *Server, o Options) (*Server, error) {
	dir, err := primary.owner.mkdir()
	if err != nil {
		return nil, err
	}
	s := &Server{Host: primary.Host, SocketDir: dir, bin: primary.bin, owner: primary.owner, dir: dir, data: filepath.Join(dir, "data")}
	if s.cleaner, err = removeWhenWeAreGone(dir); err != nil {
		return nil, err
	}
	if err := s.follow(ctx, primary, o); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Server) follow(ctx context.Context, primary *Server, o Options) (err error) {
	err = s.owner.run(s.dir, s.Bin("pg_basebackup"), "-h", primary.SocketDir, "-p", fmt.Sprint(primary.Port), "-U", User,
		"-D", s.data, "-X", "stream", "-c", "fast", "--no-sync")
	if err != nil {
		return err
	}
	signal := filepath.Join(s.data, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return err
	}
	if err := s.owner.own(signal); err != nil {
		return err
	}
	if s.Port, err = freePort(); err != nil {
		return err
	}
	settings := maps.Clone(Replicating)
	settings["primary_conninfo"] = fmt.Sprintf("host=%s port=%d user=%s", primary.SocketDir, primary.Port, User)
	maps.Copy(settings, o.Settings)
	o.Settings = settings
	if err := s.configure(o); err != nil {
		return err
	}
	return s.Restart(ctx)
}

// Promote makes a standby a primary and returns when it is one.
func (s *Server) Promote(ctx context.Context) error {
	return s.Exec(ctx, "select pg_promote(true, 60)")
}
