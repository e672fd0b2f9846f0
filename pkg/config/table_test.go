package config

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Everything PgBouncer 1.25 knows, and what 1.26 adds.
const (
	pgbouncerGlobals = `
		pool_mode max_client_conn default_pool_size min_pool_size reserve_pool_size reserve_pool_timeout max_db_connections
		max_user_connections max_db_client_connections max_user_client_connections server_round_robin
		max_prepared_statements track_extra_parameters ignore_startup_parameters disable_pqexec application_name_add_host
		peer_id
		server_reset_query server_reset_query_always server_check_query server_check_delay server_fast_close
		server_lifetime server_idle_timeout server_connect_timeout server_login_retry
		query_timeout query_wait_timeout query_wait_notify cancel_wait_timeout client_idle_timeout client_login_timeout
		idle_transaction_timeout transaction_timeout suspend_timeout autodb_idle_timeout pool_idle_timeout dns_max_ttl
		dns_nxdomain_ttl dns_zone_check_period
		auth_type auth_file auth_hba_file auth_ident_file auth_user auth_query auth_dbname auth_ldap_options
		scram_iterations admin_users stats_users
		client_tls_sslmode client_tls_key_file client_tls_cert_file client_tls_ca_file client_tls_protocols
		client_tls_ciphers client_tls13_ciphers client_tls_dheparams client_tls_ecdhcurve
		server_tls_sslmode server_tls_key_file server_tls_cert_file server_tls_ca_file server_tls_protocols
		server_tls_ciphers server_tls13_ciphers
		listen_addr listen_port listen_backlog unix_socket_dir unix_socket_mode unix_socket_group so_reuseport user
		pidfile job_name conffile resolv_conf
		logfile syslog syslog_ident syslog_facility log_connections log_disconnections log_pooler_errors log_stats
		stats_period verbose login_notify_message
		pkt_buf max_packet_size sbuf_loopcnt tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl
		tcp_user_timeout tcp_socket_buffer`
	pgbouncerDatabases = `
		dbname host port user password auth_user auth_query auth_dbname pool_size min_pool_size reserve_pool_size
		pool_mode max_db_connections max_db_client_connections server_lifetime query_wait_timeout load_balance_hosts
		connect_query client_encoding datestyle timezone application_name`
	ownDatabases   = `target_session_attrs`
	pgbouncerUsers = `
		pool_mode pool_size reserve_pool_size max_user_connections max_user_client_connections query_timeout
		query_wait_timeout idle_transaction_timeout transaction_timeout client_idle_timeout`
	pgbouncerPeers = `host port pool_size`

	ownGlobals = `http_addr log_format log_level drain_timeout server_connect_concurrency passthrough_ttl
		session_state session_probe harmless_functions pin_functions`
)

func TestEverySettingOfPgBouncerIsKnownAndNoOtherUnlisted(t *testing.T) {
	sameKeys(t, "global", keys(globals), pgbouncerGlobals+" "+ownGlobals)
	sameKeys(t, "databases", keys(perDatabase), pgbouncerDatabases+" "+ownDatabases)
	sameKeys(t, "users", keys(perUser), pgbouncerUsers)
	sameKeys(t, "peers", keys(perPeer), pgbouncerPeers)
}

func sameKeys(t *testing.T, kind string, have []string, want string) {
	t.Helper()
	wanted := strings.Fields(want)
	for _, key := range wanted {
		if !slices.Contains(have, key) {
			t.Errorf("%s setting %s is not known", kind, key)
		}
	}
	for i, key := range have {
		if !slices.Contains(wanted, key) {
			t.Errorf("%s setting %s is not listed in this test", kind, key)
		}
		if slices.Index(have, key) != i {
			t.Errorf("%s setting %s stands twice in its table", kind, key)
		}
	}
}

// Every setting is accepted in a pgbouncer.ini at PgBouncer's default, as SHOW CONFIG would print it.
func TestEverySettingIsAcceptedInAnINI(t *testing.T) {
	var ini strings.Builder
	ini.WriteString("[pgbouncer]\n")
	for _, s := range globals {
		fmt.Fprintf(&ini, "%s = %s\n", s.key, s.initial(dialectINI))
	}
	text := strings.Replace(ini.String(), "auth_file = \n", "auth_file = u\n", 1)
	c, err := Load(Input{Args: []string{"x.ini"}, Read: files{"x.ini": text, "u": ""}.read})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range globals {
		if s.initial(dialectINI) != "" && c.Origin(s.key).Source != FromFile {
			t.Errorf("%s did not come from the file", s.key)
		}
	}
}

func TestEveryFieldBelongsToExactlyOneSetting(t *testing.T) {
	checkFields(t, globals, "Databases", "Users", "Peers", "Userlist")
	checkFields(t, perDatabase, "Name")
	checkFields(t, perUser, "Name")
	checkFields(t, perPeer, "Name")
}

func checkFields[T any](t *testing.T, table []setting[T], others ...string) {
	t.Helper()
	of := new(T)
	owner := map[uintptr]string{}
	for _, s := range table {
		address := s.value(of).Addr().Pointer()
		if other, taken := owner[address]; taken {
			t.Errorf("%s and %s set the same field", s.key, other)
		}
		owner[address] = s.key
	}
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() || path == "" && slices.Contains(others, field.Name) {
				continue
			}
			if field.Type.Kind() == reflect.Struct && field.Type != secretType {
				walk(field.Name+".", v.Field(i))
			} else if owner[v.Field(i).Addr().Pointer()] == "" {
				t.Errorf("%T: no setting sets %s%s", *of, path, field.Name)
			}
		}
	}
	walk("", reflect.ValueOf(of).Elem())
}

func TestEveryDefaultIsALegalValue(t *testing.T) {
	for _, s := range globals {
		if s.doc == "" {
			t.Errorf("%s has no doc", s.key)
		}
		for _, d := range []dialect{dialectYAML, dialectINI} {
			text := s.initial(d)
			field := s.value(new(Config))
			if text == "" {
				if !takesBlank(field) {
					t.Errorf("%s has no default", s.key)
				}
				continue
			}
			if allowed := assign(field, text, d.of(s.limits)); allowed != "" {
				t.Errorf("the default of %s is %q; allowed: %s", s.key, text, allowed)
			}
		}
	}
}

// The sample shows every setting, and what it shows behind a # is the default.
func TestTheSampleShowsEverySettingAtItsDefault(t *testing.T) {
	data, err := os.ReadFile("testdata/working_sample.yaml")
	if err != nil {
		t.Fatal(err)
	}
	head, tail, _ := strings.Cut(string(data), "# --- Databases")
	shownLine := regexp.MustCompile(`(?m)^(#?)([a-z_0-9]+):(?: (.*))?$`)
	seen := map[string]bool{}
	for _, m := range shownLine.FindAllStringSubmatch(head, -1) {
		s, ok := find(globals, m[2])
		if !ok {
			t.Errorf("the sample shows %s, which does not exist", m[2])
		}
		seen[m[2]] = true
		if m[1] == "#" && m[3] != s.def {
			t.Errorf("the sample shows %s: %s; the default is %q", m[2], m[3], s.def)
		}
		marked := strings.Contains(head, "(no effect yet)\n"+m[0]+"\n")
		if marked != s.is(inert) {
			t.Errorf("the sample says of %s that it has no effect: %v", m[2], marked)
		}
	}
	for _, s := range globals {
		if !seen[s.key] {
			t.Errorf("the sample does not show %s", s.key)
		}
	}
	for _, key := range slices.Concat(keys(perDatabase), keys(perUser), keys(perPeer)) {
		if !strings.Contains(tail, " "+key+":") && !strings.Contains(tail, "#"+key+":") {
			t.Errorf("the sample's entries do not show %s", key)
		}
	}
	uncommented := shownLine.ReplaceAllString(head, "$2: $3") + "# --- Databases" + tail
	fs := files{"s.yaml": uncommented, "userlist_sample.txt": ""}
	if _, err := Load(Input{Args: []string{"s.yaml"}, Read: fs.read}); err != nil {
		t.Errorf("with every setting given, the sample does not load: %v", err)
	}
}
