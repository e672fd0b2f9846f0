package drivers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/lib/pq" // the driver

	"github.com/pgberth/pgberth/pkg/pgtest"
)

// selfSigned is a certificate that is its own authority, and its key, in PEM.
func selfSigned(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestApplicationsThatDemandTLSNeedNoCertificate(t *testing.T) {
	server := pgtest.Shared(t)
	s := start(t, server)
	out := runTool(t, append(s.env(), "PGSSLMODE=require"), "\\conninfo\nselect 7;\n", server.Bin("psql"), "-XAt")
	if !strings.Contains(out, "SSL connection") || !strings.HasSuffix(out, "7\n") {
		t.Errorf("psql printed %q", out)
	}
	url := strings.Replace(s.url("postgres", "x"), "sslmode=disable", "sslmode=require", 1)
	for name, mode := range execModes {
		t.Run(name, func(t *testing.T) { workWithPgx(t, url, mode) })
	}
	// lib/pq, by its own default.
	db, err := sql.Open("postgres", strings.TrimSuffix(s.url("postgres", "x"), "?sslmode=disable"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var n int
	if err := db.QueryRowContext(t.Context(), "select 7 where $1 = 1", 1).Scan(&n); err != nil || n != 7 {
		t.Errorf("lib/pq: %d, %v", n, err)
	}
	// Without asking first, as libpq 17 can.
	c, err := pgx.Connect(t.Context(), url+"&sslnegotiation=direct&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(context.Background()); err != nil {
		t.Error(err)
	}
	// pgbench's many queries, in TLS.
	out = runTool(t, append(s.env(), "PGSSLMODE=require"), "", server.Bin("pgbench"), "-n", "-M", "prepared", "-c", "4", "-t", "50", "-f", write(t, "s.sql", "select repeat('x', 100000);"))
	if !strings.Contains(out, "200/200") {
		t.Errorf("pgbench:\n%s", out)
	}
}

func TestCertificatesAreReadAgainWithTheConfiguration(t *testing.T) {
	serverCert, serverKey := selfSigned(t, "localhost")
	server := pgtest.Start(t, pgtest.Options{
		HBA:      []string{"hostssl all all 127.0.0.1/32 scram-sha-256"},
		Files:    map[string]string{"server.crt": serverCert, "server.key": serverKey},
		Settings: map[string]string{"ssl": "on"},
	})
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, firstKey := selfSigned(t, "localhost")
	certFile, keyFile := file("pooler.crt", first), file("pooler.key", firstKey)
	s := start(t, server,
		"client_tls_sslmode: require", "client_tls_cert_file: "+certFile, "client_tls_key_file: "+keyFile,
		"server_tls_sslmode: verify-full", "server_tls_ca_file: "+file("server-ca.crt", serverCert),
		"databases:", fmt.Sprintf("  - {name: app, host: localhost, port: %d, dbname: postgres, user: postgres, password: %s}", server.Port, pgtest.Password))
	psql := func(trusted, sql string, env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), server.Bin("psql"), "-XAtc", sql)
		cmd.Env = append(append(s.env(), "PGSSLMODE=verify-full", "PGSSLROOTCERT="+file("trusted.crt", trusted)), env...)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	const overTLS = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
	if out, err := psql(first, overTLS); err != nil || out != "t" {
		t.Fatalf("psql: %v, %s", err, out)
	}
	if out, err := psql(serverCert, "select 1"); err == nil || !strings.Contains(out, "certificate verify failed") {
		t.Errorf("psql that trusts somebody else: %v, %s", err, out)
	}
	if out, err := psql(first, "select 1", "PGSSLMODE=disable"); err == nil || !strings.Contains(out, "TLS required: connect with sslmode=require (client_tls_sslmode is require)") {
		t.Errorf("psql without TLS: %v, %s", err, out)
	}
	if out, err := psql(first, "select 1", "PGCHANNELBINDING=require"); err == nil {
		t.Errorf("psql that requires channel binding: %s", out)
	}
	hangup := func(log string) {
		t.Helper()
		seen := strings.Count(s.Log(), log)
		if err := syscall.Kill(s.PID, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says "+log, func() bool { return strings.Count(s.Log(), log) > seen })
	}
	// A broken file changes nothing.
	second, secondKey := selfSigned(t, "localhost")
	file("pooler.crt", second)
	hangup("which are no pair: private key does not match public key")
	if out, err := psql(first, overTLS); err != nil || out != "t" {
		t.Errorf("psql after a reload that failed: %v, %s", err, out)
	}
	file("pooler.key", secondKey)
	hangup("client_tls_* files' content")
	if out, err := psql(second, overTLS); err != nil || out != "t" {
		t.Errorf("psql after a reload: %v, %s", err, out)
	}
	if out, err := psql(first, "select 1"); err == nil {
		t.Errorf("psql that trusts the old certificate after a reload: %s", out)
	}
}
