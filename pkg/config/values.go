package config

import (
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PoolMode is when a server connection returns to its pool.
type PoolMode string

const (
	ModeSession     PoolMode = "session"     // when the client leaves
	ModeTransaction PoolMode = "transaction" // when its transaction ends
	ModeStatement   PoolMode = "statement"   // when its statement ends; transaction blocks are refused
)

// AuthType is how a client proves who it is.
type AuthType string

const (
	AuthTrust       AuthType = "trust"         // not at all, but the user must be known
	AuthAny         AuthType = "any"           // not at all, and the user name is ignored
	AuthCert        AuthType = "cert"          // certificate of TLS, whose common name is the user's
	AuthPlain       AuthType = "plain"         // password in clear against auth_file
	AuthMD5         AuthType = "md5"           // md5 against auth_file, SCRAM for a user whose secret is a SCRAM verifier
	AuthSCRAM       AuthType = "scram-sha-256" // SCRAM against auth_file
	AuthPassthrough AuthType = "passthrough"   // password in clear, proved by a server's login; local clients only
)

// TLSMode is libpq's sslmode.
type TLSMode string

const (
	TLSDisable    TLSMode = "disable"
	TLSAllow      TLSMode = "allow"
	TLSPrefer     TLSMode = "prefer"
	TLSRequire    TLSMode = "require"
	TLSVerifyCA   TLSMode = "verify-ca"
	TLSVerifyFull TLSMode = "verify-full"
)

// LoadBalance is how a database's several hosts are used.
type LoadBalance string

const (
	LoadBalanceRoundRobin LoadBalance = "round-robin"
	LoadBalanceDisable    LoadBalance = "disable"
)

// SessionState is what becomes of what clients leave in their sessions.
type SessionState string

const (
	StatePin       SessionState = "pin"
	StateTrack     SessionState = "track"
	StatePgBouncer SessionState = "pgbouncer"
)

// Probe says whether the server is asked what clients left in their sessions.
type Probe string

const (
	ProbeAuto Probe = "auto"
	ProbeOff  Probe = "off"
)

// TargetSession is libpq's target_session_attrs.
type TargetSession string

const (
	TargetAny           TargetSession = "any"
	TargetReadWrite     TargetSession = "read-write"
	TargetReadOnly      TargetSession = "read-only"
	TargetPrimary       TargetSession = "primary"
	TargetStandby       TargetSession = "standby"
	TargetPreferStandby TargetSession = "prefer-standby"
)

// LogFormat is the form of log lines.
type LogFormat string

const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// LogLevel is the least severe level that is logged.
type LogLevel string

const (
	LevelDebug LogLevel = "debug"
	LevelInfo  LogLevel = "info"
	LevelWarn  LogLevel = "warn"
	LevelError LogLevel = "error"
)

func (l LogLevel) slog() slog.Level {
	switch l {
	case LevelDebug:
		return slog.LevelDebug
	case LevelWarn:
		return slog.LevelWarn
	case LevelError:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// choices lists the values of the named string types, in the order they are shown.
var choices = map[reflect.Type][]string{
	reflect.TypeFor[PoolMode]():      {"session", "transaction", "statement"},
	reflect.TypeFor[AuthType]():      {"trust", "any", "plain", "md5", "scram-sha-256", "cert", "passthrough"},
	reflect.TypeFor[TLSMode]():       {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
	reflect.TypeFor[LoadBalance]():   {"round-robin", "disable"},
	reflect.TypeFor[SessionState]():  {"pin", "track", "pgbouncer"},
	reflect.TypeFor[Probe]():         {"auto", "off"},
	reflect.TypeFor[LogFormat]():     {"text", "json"},
	reflect.TypeFor[LogLevel]():      {"debug", "info", "warn", "error"},
	reflect.TypeFor[TargetSession](): {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"},
}

// limits bound and shape the values of one setting, whatever its type.
type limits struct {
	lo, hi  int           // of integers; hi 0 is the largest PgBouncer can hold
	unit    time.Duration // of a bare number that means a time; 0 is a second
	whole   bool          // only whole units, as the kernel or PgBouncer counts them
	durable bool          // durations such as 500ms are understood (everywhere but in an ini)
}

func (l limits) bounds() (lo, hi int) {
	if l.hi == 0 {
		return l.lo, math.MaxInt32
	}
	return l.lo, l.hi
}

// assign parses text into dst, a settable value. It returns what would have been allowed, "" on success.
func assign(dst reflect.Value, text string, l limits) (allowed string) {
	if dst.Kind() == reflect.Pointer && dst.Type() != secretType {
		v := reflect.New(dst.Type().Elem())
		if allowed = assign(v.Elem(), text, l); allowed == "" {
			dst.Set(v)
		}
		return allowed
	}
	if names, ok := choices[dst.Type()]; ok {
		i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, text) })
		if i < 0 {
			return strings.Join(names, ", ")
		}
		dst.SetString(names[i])
		return ""
	}
	switch dst.Addr().Interface().(type) {
	case *string:
		if strings.ContainsRune(text, 0) {
			return "text without NUL bytes"
		}
		dst.SetString(text)
	case *[]string:
		dst.Set(reflect.ValueOf(splitList(text)))
	case *[]int:
		lo, hi := l.bounds()
		var list []int
		for _, item := range strings.Split(text, ",") {
			n, ok := parseInt(strings.TrimSpace(item))
			if !ok || n < int64(lo) || n > int64(hi) {
				return fmt.Sprintf("whole numbers from %d to %d, separated by commas", lo, hi)
			}
			list = append(list, int(n))
		}
		dst.Set(reflect.ValueOf(list))
	case *Secret:
		dst.Set(reflect.ValueOf(NewSecret(text)))
	case *bool:
		b, ok := booleans[strings.ToLower(text)]
		if !ok {
			return "0 or 1, no or yes, false or true, off or on"
		}
		dst.SetBool(b)
	case *int:
		lo, hi := l.bounds()
		n, ok := parseInt(text)
		if !ok || n < int64(lo) || n > int64(hi) {
			return fmt.Sprintf("whole numbers from %d to %d", lo, hi)
		}
		dst.SetInt(n)
	case *fs.FileMode:
		n, ok := parseInt(text)
		if !ok || n < 0 || n > 0o777 {
			return "octal modes from 0000 to 0777, such as 0770"
		}
		dst.SetUint(uint64(n))
	case *time.Duration:
		d, ok := parseTime(text, l)
		if !ok {
			return l.timeAllowed()
		}
		dst.SetInt(int64(d))
	default:
		panic("config: no parser for " + dst.Type().String())
	}
	return ""
}

var booleans = map[string]bool{
	"0": false, "no": false, "false": false, "off": false,
	"1": true, "yes": true, "true": true, "on": true,
}

// parseInt reads decimal, 0x and leading-0 octal, as strtol does; nothing may follow.
func parseInt(text string) (int64, bool) {
	sign, digits := "", text
	if strings.HasPrefix(text, "-") || strings.HasPrefix(text, "+") {
		sign, digits = text[:1], text[1:]
	}
	base := 10
	switch lower := strings.ToLower(digits); {
	case strings.HasPrefix(lower, "0x"):
		base, digits = 16, digits[2:]
	case len(digits) > 1 && digits[0] == '0':
		base, digits = 8, digits[1:]
	}
	if strings.HasPrefix(digits, "-") || strings.HasPrefix(digits, "+") {
		return 0, false
	}
	n, err := strconv.ParseInt(sign+digits, base, 64)
	return n, err == nil
}

// maxTime is about 68 years, what fits PgBouncer's integers in seconds.
const maxTime = math.MaxInt32 * time.Second

func parseTime(text string, l limits) (time.Duration, bool) {
	unit := l.unit
	if unit == 0 {
		unit = time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil || !l.durable || !strings.ContainsAny(text, "hmsuµn") {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !(f >= 0 && f <= float64(maxTime)/float64(unit)) {
			return 0, false
		}
		d = time.Duration(math.Round(f * float64(unit)))
	}
	if d < 0 || d > maxTime || l.whole && d%unit != 0 {
		return 0, false
	}
	return d, true
}

func (l limits) timeAllowed() string {
	allowed, durations := "seconds such as 15 or 0.5", "500ms or 1m"
	if l.unit == time.Millisecond {
		allowed = "whole milliseconds such as 500"
	} else if l.whole {
		allowed, durations = "whole seconds such as 15", "15s or 1m"
	}
	if l.durable {
		allowed += ", or a duration such as " + durations
	}
	return allowed
}

func splitList(text string) []string {
	var list []string
	for _, s := range strings.Split(text, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// format is the inverse of assign; a secret shows only that it is there.
func format(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		return format(v.Elem())
	}
	switch x := v.Interface().(type) {
	case Secret:
		return x.String()
	case []string:
		return strings.Join(x, ",")
	case []int:
		texts := make([]string, len(x))
		for i, n := range x {
			texts[i] = strconv.Itoa(n)
		}
		return strings.Join(texts, ",")
	case bool:
		return strconv.FormatBool(x)
	case fs.FileMode:
		return fmt.Sprintf("%04o", uint32(x))
	case time.Duration:
		return formatTime(x)
	}
	return fmt.Sprint(v.Interface())
}

func formatTime(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// takesBlank tells whether a blank value is a value of its own, the empty text. Elsewhere blank means not given.
func takesBlank(v reflect.Value) bool {
	if v.Kind() == reflect.Pointer {
		return false
	}
	switch v.Interface().(type) {
	case string, []string, Secret:
		return true
	}
	return false
}
