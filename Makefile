# `make` prints what can be done. Every variable can be overridden: make fuzz FUZZTIME=2m

GO       ?= go
# Packages tested at once. The tests start servers that use all processors, and some expect an answer in time.
JOBS     ?= 1
# What `make lint` and `make vuln` look at.
PKGS     ?= ./...
# Extra flags for every go test: make test-unit TEST_FLAGS='-run Frames -v'
TEST_FLAGS ?=
TEST_TIMEOUT ?= 20m
FUZZTIME ?= 20s
# Only fuzz targets whose name matches: make fuzz FUZZ=Startup
FUZZ     ?= .
# See `go run ./e2e/bench -h` and `go run ./e2e/demo -h`.
BENCH_FLAGS ?=
DEMO_FLAGS  ?=
# The PgBouncer to compare with; empty means Debian's.
PGBOUNCER ?=
# The Debian suite whose source package `make pgbouncer-new` builds.
PGBOUNCER_SUITE ?= trixie
# Where built binaries and pinned tools go; both are ignored by git.
BIN      ?= bin
TOOLS    ?= .bin

GOLANGCI_VERSION    ?= v2.15.0
GOVULNCHECK_VERSION ?= v1.9.0
golangci    := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
govulncheck := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)

LDFLAGS ?= -s -w
build_flags := -trimpath -ldflags '$(LDFLAGS)'
go_test := $(GO) test -p $(JOBS) -shuffle=on -timeout $(TEST_TIMEOUT) $(TEST_FLAGS)

export PGBOUNCER

.NOTPARALLEL:

.PHONY: help
help: ## this text
	@echo 'usage: make TARGET [VARIABLE=value]'
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

.PHONY: demo
demo: deps-postgres sidecar ## about a minute: 576 connections against max_connections=200, without and with the sidecar
	@$(GO) build -o $(BIN)/demo ./e2e/demo
	@exec $(BIN)/demo -sidecar $(BIN)/sidecar $(DEMO_FLAGS)

.PHONY: build
build: sidecar ## the binaries, stripped, in bin/

.PHONY: sidecar
sidecar:
	@CGO_ENABLED=0 $(GO) build $(build_flags) -o $(BIN)/sidecar ./cmd/sidecar

.PHONY: test
test: lint test-unit race test-e2e ## everything that must pass before a change lands: lint, unit, race, end to end

.PHONY: test-unit
test-unit: deps-postgres ## the fast part: packages, commands and the architecture rules
	$(go_test) ./cmd/... ./pkg/... ./e2e/architecture ./e2e/bench ./e2e/daemon ./e2e/demo ./e2e/latency

.PHONY: test-e2e
test-e2e: deps-postgres deps-drivers ## the slow part: a real PostgreSQL, real drivers, crashes
	$(go_test) -count=1 ./e2e/...

.PHONY: race
race: deps-compiler ## the unit tests again under the race detector
	CGO_ENABLED=1 $(go_test) -race ./cmd/... ./pkg/...

# What cannot be led through TLS: tests of what comes before it, of sockets, and of fakes that only know cancel requests
# in clear.
IN_CLEAR := ServerConnectionWaitsForTheCancel|CancelRequestInDoubt|ManyCancelRequests|EveryQueryIsCancelled|NobodyNewIsTaken|HostileFirstPackets
IN_CLEAR := $(IN_CLEAR)|RequestsForEncryption|HalfOpenLogins|HangUpAtAnyByte|EverythingMayComeInSingleBytes|AcceptedConnectionsHave|KernelHolds
IN_CLEAR := $(IN_CLEAR)|EncryptionMayBeAsked|AllocatesNothing|Conversations/startup_byte|Conversations/startup_encryption
IN_CLEAR := $(IN_CLEAR)|ClientsMayOrMustUseTLS|AClientMayBeginWithTLS|EncryptionIsAsked|AnOrderlyEnd|CloseNotify|ARecordMayBeCut|TLSClient
IN_CLEAR := $(IN_CLEAR)|SilentHandshakes|AHandshakeThat|AReloadBrings|CancelRequestsGoInside|AServersRecordMayBeCut|ServersAreAsked

.PHONY: test-encrypted
test-encrypted: deps-postgres ## the proxy's tests once more, with clients and servers that speak TLS
	$(go_test) ./pkg/proxy -skip '$(IN_CLEAR)' -encrypted

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' pkg | awk -F':func ' '$$2 ~ /$(FUZZ)/ { print $$1 ":" $$2 }' | sort | \
	while IFS=: read -r file target; do \
		echo "== $$target ($${file%/*})"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$${file%/*}" || exit 1; \
	done

SOAK := 1h

.PHONY: soak
soak: deps-postgres ## random sessions compared with PostgreSQL's own for SOAK, by default an hour
	$(GO) test -count=1 -timeout 24h -run '^TestSessionsThroughThePooler' -v ./pkg/proxy -args -differential $(SOAK)

.PHONY: bench
bench: deps-postgres deps-pgbouncer sidecar ## PostgreSQL, PgBouncer and the sidecar in turn; results in docs/benchmarks (BENCH_FLAGS=-h)
	@$(GO) build -o $(BIN)/bench ./e2e/bench
	@exec $(BIN)/bench -sidecar $(BIN)/sidecar $(BENCH_FLAGS)

.PHONY: pgbouncer-new
pgbouncer-new: ## build a newer PgBouncer from Debian's source package, for make bench PGBOUNCER=<the path it prints>
	@e2e/bench/pgbouncer-new $(PGBOUNCER_SUITE) $(TOOLS)

.PHONY: lint
lint: $(golangci) ## golangci-lint and gofmt, with the version pinned here
	$(golangci) run $(PKGS)

.PHONY: vuln
vuln: $(govulncheck) ## known vulnerabilities in what is linked (asks vuln.go.dev)
	$(govulncheck) $(PKGS)

.PHONY: deps
deps: deps-postgres deps-compiler deps-drivers ## install the packages the tests need, if missing (apt-get, with sudo unless root; npm)

.PHONY: deps-postgres deps-compiler deps-drivers deps-pgbouncer
deps-postgres deps-compiler deps-drivers deps-pgbouncer: deps-%:
	@.ci/deps $*

$(golangci):
	GOBIN=$(abspath $(TOOLS)) GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv $(TOOLS)/golangci-lint $@

$(govulncheck):
	GOBIN=$(abspath $(TOOLS)) GOFLAGS= $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	@mv $(TOOLS)/govulncheck $@

.PHONY: clean
clean: ## remove built binaries and tools
	rm -rf $(BIN) $(TOOLS)
