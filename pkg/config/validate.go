package config

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// relations judges what no single value tells: settings against each other and against what the system can do.
func (b *builder) relations() {
	b.listening()
	b.authentication()
	b.sizes()
	b.databases()
	b.peers()
}

// problem adds a sentence at the place of key, unless one of the keys it is about is already refused.
func (b *builder) problem(key string, about []string, format string, args ...any) {
	for _, k := range append(about, key) {
		if b.bad[k] {
			return
		}
	}
	b.problems.add(b.config.origins[key], format, args...)
}

func (b *builder) note(format string, args ...any) {
	b.config.notes = append(b.config.notes, fmt.Sprintf(format, args...))
}

// listenable tells whether an item of listen_addr can name an interface.
func listenable(addr string) bool {
	_, err := netip.ParseAddr(addr)
	return err == nil || addr == "*" || hostName.MatchString(addr)
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

func (b *builder) listening() {
	l := b.config.Listen
	for _, addr := range l.Addrs {
		if !listenable(addr) {
			b.problem("listen_addr", nil, "listen_addr holds %s; allowed: addresses or host names without port or brackets, or *", shown(addr))
		}
	}
	if len(l.Addrs) == 0 && l.SocketDir == "" {
		b.problem("listen_addr", []string{"unix_socket_dir"}, "listen_addr and unix_socket_dir are both blank; at least one is needed")
	}
	const longestSocket = 107 // what fits a socket address
	if socket := fmt.Sprintf("%s/.s.PGSQL.%d", l.SocketDir, l.Port); l.SocketDir != "" && len(socket) > longestSocket {
		b.problem("unix_socket_dir", []string{"listen_port"}, "unix_socket_dir is %s; allowed: directories that leave the socket's path within %d bytes", shown(l.SocketDir), longestSocket)
	}
	addr := b.config.HTTP.Addr
	if addr == "" {
		return
	}
	host, portText, err := net.SplitHostPort(addr)
	n, portErr := strconv.ParseUint(portText, 10, 16)
	if err != nil || portErr != nil {
		b.problem("http_addr", nil, "http_addr is %s; allowed: host:port with a port from 0 to 65535, or blank", shown(addr))
		return
	}
	for _, a := range l.Addrs {
		if n != 0 && int(n) == l.Port && (host == "" || a == "*" || a == host) {
			b.problem("http_addr", []string{"listen_port", "listen_addr"}, "http_addr is %s, which listen_addr and listen_port already take; allowed: another port", shown(addr))
			return
		}
	}
}

// loopback tells whether only this machine reaches the address.
func loopback(addr string) bool {
	ip, err := netip.ParseAddr(addr)
	return err == nil && ip.IsLoopback() || strings.EqualFold(addr, "localhost")
}

func (b *builder) authentication() {
	a := &b.config.Auth
	switch a.Type {
	case AuthPassthrough:
		for _, addr := range b.config.Listen.Addrs {
			if listenable(addr) && !loopback(addr) {
				b.problem("listen_addr", []string{"auth_type"}, "listen_addr holds %s while auth_type is passthrough, which asks for passwords in clear; allowed: loopback addresses and the Unix socket, or another auth_type", shown(addr))
			}
		}
	case AuthPlain, AuthMD5, AuthSCRAM:
		if a.File == "" && !b.looksUp() {
			b.problem("auth_type", []string{"auth_file", "auth_user"}, "auth_type is %s but auth_file and auth_user are blank; allowed: a userlist.txt in auth_file, an auth_user who looks users up, or auth_type trust, any or passthrough", a.Type)
		}
		if a.Type == AuthPlain && len(b.config.Listen.Addrs) > 0 {
			b.note("auth_type plain has clients send their passwords in clear; scram-sha-256 works with the same auth_file")
		}
	case AuthCert:
		if mode := b.config.TLS.Client.Mode; mode != TLSVerifyCA && mode != TLSVerifyFull {
			b.problem("auth_type", []string{"client_tls_sslmode"}, "auth_type is cert but client_tls_sslmode is %s; allowed: verify-ca or verify-full, which have clients show certificates", mode)
		}
		if a.File == "" && !b.looksUp() {
			b.problem("auth_type", []string{"auth_file", "auth_user"}, "auth_type is cert but auth_file and auth_user are blank; allowed: a userlist.txt in auth_file, or an auth_user who looks users up")
		}
	case AuthAny:
		for _, d := range b.config.Databases {
			if d.User == "" {
				b.problems.add(d.at, "databases %s: user is blank while auth_type is any; allowed: the user to log in as", shown(d.Name))
			}
		}
	}
	b.lookups()
	hashes := 0
	for _, secret := range b.config.Userlist {
		if s := secret.Reveal(); len(s) == 35 && strings.HasPrefix(s, "md5") {
			hashes++
		}
	}
	if hashes > 0 && a.Type == AuthSCRAM {
		b.note("auth_file holds %d md5 secrets, with which nobody can log in by scram-sha-256", hashes)
	}
}

func (b *builder) sizes() {
	p := b.config.Pool
	if p.Size > 0 && p.MinSize > p.Size {
		b.problem("min_pool_size", []string{"default_pool_size"}, "min_pool_size is %d but default_pool_size is %d; allowed: at most the pool's size", p.MinSize, p.Size)
	}
	for _, d := range b.config.Databases {
		if d.MinPoolSize == nil || b.bad["default_pool_size"] {
			continue
		}
		if size := first(p.Size, d.PoolSize); size > 0 && *d.MinPoolSize > size {
			b.problems.add(d.origins["min_pool_size"], "databases %s: min_pool_size is %d but its pool size is %d; allowed: at most the pool's size", shown(d.Name), *d.MinPoolSize, size)
		}
	}
}

func (b *builder) databases() {
	if len(b.config.Databases) == 0 {
		b.note("no databases are configured, so every login is refused")
	}
	for _, d := range b.config.Databases {
		label := "databases " + shown(d.Name)
		if d.Name == Reserved {
			b.problems.add(d.at, "%s: the name is reserved for the console; allowed: any other", label)
		}
		if len(d.Hosts) == 0 && b.config.Listen.SocketDir == "" && !b.bad["unix_socket_dir"] {
			b.problems.add(d.at, "%s: host is blank, which means the Unix socket in unix_socket_dir, but that is blank too; allowed: a host name, an address or a directory", label)
		}
		if hosts := max(len(d.Hosts), 1); len(d.Ports) != 1 && len(d.Ports) != hosts {
			b.problems.add(d.origins["port"], "%s: port lists %d ports for %d hosts; allowed: one for all, or one for each", label, len(d.Ports), hosts)
		}
		for _, h := range d.Hosts {
			if strings.ContainsAny(h, "[] \t") {
				b.problems.add(d.origins["host"], "%s: host holds %s; allowed: host names, addresses without brackets, and directories, separated by commas", label, shown(h))
			}
		}
		if d.Password.Set() && d.User == "" {
			if b.dialect == dialectYAML {
				b.problems.add(d.origins["password"], "%s: password is given without user; allowed: both or none", label)
			} else {
				b.note("%s: password is ignored without user", label)
			}
		}
		if len(d.DBName) > maxDatabase {
			b.problems.add(d.origins["dbname"], "%s: dbname %s is longer than %d bytes", label, shown(d.DBName), maxDatabase)
		}
		if len(d.User) > maxUser {
			b.problems.add(d.origins["user"], "%s: user %s is longer than %d bytes", label, shown(d.User), maxUser)
		}
	}
}

func (b *builder) peers() {
	for _, p := range b.config.Peers {
		label := "peers " + shown(p.Name)
		if n, ok := parseInt(p.Name); !ok || n < 1 || n > 16383 {
			b.problems.add(p.at, "%s: the name is not a peer's id; allowed: whole numbers from 1 to 16383", label)
		}
		if p.Host == "" {
			b.problems.add(p.at, "%s: host is blank; allowed: the peer's address", label)
		}
	}
}
