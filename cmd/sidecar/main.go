// Command sidecar is a PostgreSQL connection pooler for one pod: applications connect to localhost:6432 instead of the
// database. It reads a YAML file or a pgbouncer.ini, serves, and exits; everything it does is in pkg/proxy.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/pgberth/pgberth/pkg/config"
)

// Exit statuses.
const (
	exitFailed = 1 // could not do it
	exitUsage  = 2 // was told something that makes no sense
)

// version is set when a release is built.
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

const usage = `usage:
  sidecar FILE                    serve with a YAML file or a pgbouncer.ini
  sidecar run [FILE] [--key=value …]
                                  serve; settings also come from PGBERTH_* variables
  sidecar check [FILE] [--key=value …]
                                  print the effective settings and where each came from
  sidecar healthz                 exit 0 when the sidecar of this configuration is ready
  sidecar scram USER              print the user list's line for a password that is asked for, or read from standard input
  sidecar version
  sidecar help                    list every --key=value
`

func run(args, environ []string, stdout, stderr io.Writer) int {
	verb, rest := "run", args
	if len(args) > 0 {
		switch args[0] {
		case "run", "check", "healthz":
			verb, rest = args[0], args[1:]
		case "scram":
			if err := printVerifier(args[1:], os.Stdin, stdout, stderr); err != nil {
				_, _ = fmt.Fprintln(stderr, "sidecar:", err)
				return exitUsage
			}
			return 0
		case "version", "--version", "-V":
			_, _ = fmt.Fprintln(stdout, versionLine())
			return 0
		case "help", "--help", "-h":
			_, _ = fmt.Fprint(stdout, usage, "\n", config.FlagUsages())
			return 0
		}
	}
	in := config.Input{Args: rest, Environ: environ, Read: config.ReadFile}
	cfg, err := config.Load(in)
	if err != nil {
		var problems config.Problems
		if errors.As(err, &problems) {
			for _, p := range problems {
				_, _ = fmt.Fprintln(stderr, p)
			}
		} else {
			_, _ = fmt.Fprintln(stderr, err)
		}
		return exitUsage
	}
	switch verb {
	case "check":
		err = check(cfg, stdout)
	case "healthz":
		err = healthz(cfg)
	default:
		// The relay is one goroutine; more processors would only make the runtime look for work on them.
		if os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(1)
		}
		err = serve(in, cfg, stderr)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "sidecar:", err)
		return exitFailed
	}
	return 0
}

func check(cfg *config.Config, stdout io.Writer) error {
	return cfg.Render(stdout)
}

func versionLine() string {
	v := version
	if bi, ok := debug.ReadBuildInfo(); ok && v == "dev" && bi.Main.Version != "" {
		v = bi.Main.Version
	}
	return fmt.Sprintf("pgberth sidecar %s (%s %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
