// Command demo shows the problem and its solution on a real PostgreSQL, in about a minute: more application connections
// than the database allows, first straight at it, then through the sidecar.
//
// It refuses to pretend: what it reports about PostgreSQL comes from pg_stat_activity, and every committed write is counted
// again in the tables at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// The estate: what a middling company runs against one database.
const (
	services       = 12
	replicas       = 3
	poolPerReplica = 16
	appConnections = services * replicas * poolPerReplica

	maxConnections = 200 // of PostgreSQL
)

type settings struct {
	sidecar  string
	budget   int           // backends the sidecar may open
	duration time.Duration // of the load, each time
}

func main() {
	var s settings
	flag.StringVar(&s.sidecar, "sidecar", "bin/sidecar", "the sidecar's binary")
	flag.IntVar(&s.budget, "budget", 50, "backends the sidecar may open")
	flag.DurationVar(&s.duration, "duration", 20*time.Second, "length of the load, straight and again through the sidecar")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	pooled, err := run(ctx, s)
	if ctx.Err() != nil {
		err = errors.New("interrupted; everything started here has been ended")
	}
	stop()
	if err != nil {
		fmt.Println(err)
	}
	outcome := "ok"
	if err != nil {
		outcome = "FAILED"
	}
	// The last line is for scripts.
	fmt.Printf("demo: %s budget=%d peak_backends=%d app_connections=%d transactions=%d errors=%d\n",
		outcome, s.budget, pooled.peakBackends, pooled.peakConnections, pooled.transactions, pooled.errors())
	if err != nil {
		os.Exit(1)
	}
}

// run returns what was seen through the sidecar, and an error if any promise was broken.
func run(ctx context.Context, s settings) (phase, error) {
	fmt.Printf("%d services x %d replicas x %d connections = %d application connections; PostgreSQL allows %d.\n\n",
		services, replicas, poolPerReplica, appConnections, maxConnections)
	stage, err := setStage(ctx)
	if err != nil {
		return phase{}, err
	}
	defer stage.close()

	straight, err := stage.play(ctx, "straight to PostgreSQL", appRole, stage.postgres.Addr(), s.duration)
	if err != nil {
		return phase{}, err
	}

	sidecar, err := stage.startSidecar(ctx, s)
	if err != nil {
		return phase{}, err
	}
	defer sidecar.Stop(syscall.SIGKILL, time.Second)
	title := fmt.Sprintf("through the sidecar, %d backends", s.budget)
	pooled, err := stage.play(ctx, title, poolerRole, stage.sidecarAddr, s.duration)
	if err != nil {
		return pooled, fmt.Errorf("%w\nthe sidecar's log ends with:\n%s", err, sidecar.Log())
	}
	if err := endPolitely(sidecar); err != nil {
		return pooled, err
	}

	fmt.Print(report(straight, pooled))
	lost, err := stage.lostWrites(ctx, straight.writes+pooled.writes)
	if err != nil {
		return pooled, err
	}
	return pooled, judge(s, straight, pooled, lost)
}

// judge says which promise was broken, if any.
func judge(s settings, straight, pooled phase, lost int) error {
	var broken []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	want(straight.refused > 0, "straight to PostgreSQL nobody was refused, so the problem did not show")
	want(pooled.errors() == 0, "through the sidecar there were %d errors, expected none", pooled.errors())
	want(pooled.transactions > 0, "through the sidecar no transaction was done")
	want(pooled.peakConnections == appConnections, "the sidecar held %d application connections at once, expected %d", pooled.peakConnections, appConnections)
	want(pooled.peakBackends > 0 && pooled.peakBackends <= s.budget, "the sidecar had %d backends, allowed are 1 to %d", pooled.peakBackends, s.budget)
	want(lost == 0, "the tables have %d committed writes fewer than the applications were told", lost)
	return errors.Join(broken...)
}
