package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pgberth/pgberth/pkg/config"
	"github.com/pgberth/pgberth/pkg/pool"
	"github.com/pgberth/pgberth/pkg/proxy"
	"github.com/pgberth/pgberth/pkg/session"
)

// serverCloseTimeout is how long a server may take to end a connection that was said goodbye to.
const serverCloseTimeout = 5 * time.Second

var authTypes = map[config.AuthType]proxy.AuthType{
	config.AuthTrust:       proxy.Trust,
	config.AuthAny:         proxy.Any,
	config.AuthPlain:       proxy.Plain,
	config.AuthCert:        proxy.Cert,
	config.AuthMD5:         proxy.MD5,
	config.AuthSCRAM:       proxy.ScramSHA256,
	config.AuthPassthrough: proxy.Passthrough,
}

var poolModes = map[config.PoolMode]pool.Mode{
	config.ModeSession:     pool.Session,
	config.ModeTransaction: pool.Transaction,
	config.ModeStatement:   pool.Statement,
}

var sessionStates = map[config.SessionState]proxy.SessionState{
	config.StatePin:       proxy.StatePin,
	config.StateTrack:     proxy.StateTrack,
	config.StatePgBouncer: proxy.StatePgBouncer,
}

var balances = map[config.LoadBalance]proxy.LoadBalance{
	config.LoadBalanceRoundRobin: proxy.RoundRobin,
	config.LoadBalanceDisable:    proxy.StickToOne,
}

var targets = map[config.TargetSession]proxy.TargetSession{
	config.TargetAny:           proxy.AnySession,
	config.TargetReadWrite:     proxy.ReadWrite,
	config.TargetReadOnly:      proxy.ReadOnly,
	config.TargetPrimary:       proxy.Primary,
	config.TargetStandby:       proxy.Standby,
	config.TargetPreferStandby: proxy.PreferStandby,
}

var tlsModes = map[config.TLSMode]proxy.TLSMode{
	config.TLSDisable:    proxy.TLSDisable,
	config.TLSAllow:      proxy.TLSAllow,
	config.TLSPrefer:     proxy.TLSPrefer,
	config.TLSRequire:    proxy.TLSRequire,
	config.TLSVerifyCA:   proxy.TLSVerifyCA,
	config.TLSVerifyFull: proxy.TLSVerifyFull,
}

// settings says in the proxy's terms what the configuration says in the operator's.
func settings(cfg *config.Config) (*proxy.Settings, error) {
	auth, ok := authTypes[cfg.Auth.Type]
	if !ok {
		return nil, fmt.Errorf("auth_type: %s is not supported yet", cfg.Auth.Type)
	}
	checkQuery, checks := cfg.Server.Check()
	set := &proxy.Settings{
		Auth:            auth,
		ScramIterations: cfg.Auth.ScramIterations,
		PassthroughTTL:  cfg.Auth.PassthroughTTL,
		ClientTLS:       proxy.NewClientTLS(tlsModes[cfg.TLS.Client.Mode], cfg.TLS.Client.Config()),
		ServerTLS:       proxy.NewServerTLS(tlsModes[cfg.TLS.Server.Mode], cfg.TLS.Server.Config()),
		MaxClients:      cfg.Limits.Clients,
		Tracked:         cfg.Session.Track,
		IgnoreStartup:   cfg.Session.IgnoreStartup,

		QueryWaitNotify:      cfg.Timeouts.QueryWaitNotify,
		ServerCheckQuery:     checkQuery,
		ClientLoginTimeout:   cfg.Timeouts.ClientLogin,
		ServerConnectTimeout: cfg.Server.ConnectTimeout,
		ServerCloseTimeout:   serverCloseTimeout,
		CancelWaitTimeout:    cfg.Timeouts.CancelWait,

		MaxPacketSize: cfg.Session.MaxPacketSize,
		MaxPrepared:   cfg.Session.MaxPreparedStatements,
		SessionState:  sessionStates[cfg.Session.State],
		ProbeOff:      cfg.Session.Probe == config.ProbeOff,
		Reader:        session.NewReader(cfg.Session.Harmless, cfg.Session.Pinning),
		KeepAlive: proxy.KeepAlive{
			On: cfg.TCP.Keepalive, Idle: cfg.TCP.KeepaliveIdle, Interval: cfg.TCP.KeepaliveInterval, Count: cfg.TCP.KeepaliveCount,
			UserTimeout: cfg.TCP.UserTimeout, SocketBuffer: cfg.TCP.SocketBuffer,
		},

		DNS: proxy.DNS{MaxTTL: cfg.DNS.MaxTTL, NegativeTTL: cfg.DNS.NXDomainTTL, CheckPeriod: cfg.DNS.ZoneCheckPeriod},

		LogConnections:    cfg.Log.Connections,
		LogDisconnections: cfg.Log.Disconnections,
		LogPoolerErrors:   cfg.Log.PoolerErrors,
	}
	if cfg.Userlist != nil {
		set.Users = make(map[string]string, len(cfg.Userlist))
		for name, secret := range cfg.Userlist {
			set.Users[name] = secret.Reveal()
		}
	}
	set.Route = func(database, user string) (proxy.Route, bool) {
		r, ok := cfg.Route(database, user)
		if !ok {
			return proxy.Route{}, false
		}
		return route(cfg, r, checks), true
	}
	if file := cfg.DNS.ResolvConf; file != "" {
		text, err := os.ReadFile(file)
		if err == nil {
			set.DNS.Resolve, err = proxy.ResolveBy(text)
		}
		if err != nil {
			return nil, fmt.Errorf("resolv_conf %s: %w", file, err)
		}
	}
	set.AuthRoute = func(database, user string) (proxy.Route, bool) {
		r, ok := cfg.AuthRoute(database, user)
		if !ok {
			return proxy.Route{}, false
		}
		return route(cfg, r, checks), true
	}
	set.Lookup = func(database string) (proxy.Lookup, bool) {
		l, ok := cfg.Lookup(database)
		if !ok {
			return proxy.Lookup{}, false
		}
		return proxy.Lookup{Route: route(cfg, l.Route, checks), Query: l.Query}, true
	}
	listeners, err := listeners(cfg.Listen, cfg.TCP.DeferAccept)
	if err != nil {
		return nil, err
	}
	set.Listeners = listeners
	return set, nil
}

func route(cfg *config.Config, r config.Route, checks bool) proxy.Route {
	// Every login comes here, and most databases have none of these.
	var startup map[string]string
	for _, kv := range [...]struct{ name, value string }{
		{"client_encoding", r.Entry.ClientEncoding}, {"DateStyle", r.Entry.DateStyle},
		{"TimeZone", r.Entry.TimeZone}, {"application_name", r.Entry.ApplicationName},
	} {
		if kv.value != "" {
			if startup == nil {
				startup = make(map[string]string)
			}
			startup[kv.name] = kv.value
		}
	}
	return proxy.Route{
		Database: r.Database, User: r.User,
		Hosts: r.Hosts, Port: r.Port, Ports: r.Ports, DBName: r.DBName, Password: r.Password.Reveal(), Startup: startup,
		ResetQuery: r.ResetQuery, ConnectQuery: r.Entry.ConnectQuery,
		Balance: balances[r.Entry.LoadBalance], Target: targets[r.Entry.TargetSession],
		Pool: pool.Settings{
			Mode: poolModes[r.Mode],
			Size: r.Size, MinSize: r.MinSize, ReserveSize: r.ReserveSize, ReserveTimeout: cfg.Pool.ReserveTimeout,
			QueryWaitTimeout: r.QueryWait, ServerLifetime: r.ServerLifetime, ServerIdleTimeout: cfg.Server.IdleTimeout,
			CheckDelay: cfg.Server.CheckDelay, Check: checks, Reset: r.ResetQuery != "", RoundRobin: cfg.Server.RoundRobin,
			// A forced user needs no client to be known.
			KeepWarm: r.Entry.User == r.User, MaxConnecting: cfg.Pool.MaxConnecting, LoginRetry: cfg.Server.LoginRetry,
		},
		Timeouts: proxy.Timeouts{
			Query: r.Query, Transaction: r.Transaction, IdleTransaction: r.IdleTransaction, Idle: r.ClientIdle,
		},
		MaxDatabaseBackends: r.MaxDatabaseServers, MaxDatabaseClients: r.MaxDatabaseClients,
		MaxUserBackends: r.MaxUserServers, MaxUserClients: r.MaxUserClients,
	}
}

// listeners resolves the addresses to listen on.
func listeners(l config.Listen, hold time.Duration) ([]proxy.Listener, error) {
	var out []proxy.Listener
	for _, host := range l.Addrs {
		addrs, err := addresses(host)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			out = append(out, proxy.Listener{TCP: netip.AddrPortFrom(a, uint16(l.Port)), Backlog: l.Backlog, Defer: hold})
		}
	}
	if l.SocketDir != "" {
		gid := -1
		if l.SocketGroup != "" {
			var err error
			if gid, err = groupID(l.SocketGroup); err != nil {
				return nil, err
			}
		}
		path := filepath.Join(l.SocketDir, ".s.PGSQL."+strconv.Itoa(l.Port))
		out = append(out, proxy.Listener{Unix: path, Mode: l.SocketMode, Group: gid, Backlog: l.Backlog})
	}
	return out, nil
}

func addresses(host string) ([]netip.Addr, error) {
	if host == "*" {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return nil, fmt.Errorf("listen_addr: cannot resolve %q: %w", host, err)
	}
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}

func groupID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("unix_socket_group: there is no group %q", name)
	}
	return strconv.Atoi(g.Gid)
}
