package pgwire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// What the pooler says is what others read.
func TestServerMessagesAreReadByADriver(t *testing.T) {
	errorResponse := func(severity, hint string) *pgproto3.ErrorResponse {
		return &pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: "53300", Message: "no more", Hint: hint}
	}
	for name, c := range map[string]struct {
		got  []byte
		want pgproto3.BackendMessage
	}{
		"error":            {AppendError(nil, Error, "53300", "no more"), errorResponse("ERROR", "")},
		"fatal with hint":  {AppendErrorHint(nil, Fatal, "53300", "no more", "wait"), errorResponse("FATAL", "wait")},
		"notice":           {AppendNotice(nil, "queued"), &pgproto3.NoticeResponse{Severity: "NOTICE", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "queued"}},
		"ready":            {AppendReady(nil, StatusFailed), &pgproto3.ReadyForQuery{TxStatus: 'E'}},
		"parameter":        {AppendParameterStatus(nil, "TimeZone", "UTC"), &pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"}},
		"empty parameter":  {AppendParameterStatus(nil, "application_name", ""), &pgproto3.ParameterStatus{Name: "application_name"}},
		"short key":        {AppendBackendKey(nil, 1<<31, []byte{1, 2, 3, 4}), &pgproto3.BackendKeyData{ProcessID: 1 << 31, SecretKey: []byte{1, 2, 3, 4}}},
		"long key":         {AppendBackendKey(nil, 7, bytes.Repeat([]byte{9}, MaxCancelKey)), &pgproto3.BackendKeyData{ProcessID: 7, SecretKey: bytes.Repeat([]byte{9}, MaxCancelKey)}},
		"auth ok":          {AppendAuth(nil, AuthOK, nil), &pgproto3.AuthenticationOk{}},
		"auth in clear":    {AppendAuth(nil, AuthCleartext, nil), &pgproto3.AuthenticationCleartextPassword{}},
		"auth md5":         {AppendAuth(nil, AuthMD5, []byte("salt")), &pgproto3.AuthenticationMD5Password{Salt: [4]byte([]byte("salt"))}},
		"auth scram":       {AppendAuth(nil, AuthSASL, []byte("SCRAM-SHA-256\x00\x00")), &pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}}},
		"scram challenge":  {AppendAuth(nil, AuthSASLContinue, []byte("r=1")), &pgproto3.AuthenticationSASLContinue{Data: []byte("r=1")}},
		"scram end":        {AppendAuth(nil, AuthSASLFinal, []byte("v=1")), &pgproto3.AuthenticationSASLFinal{Data: []byte("v=1")}},
		"no such options":  {AppendNegotiate(nil, 0, []string{"_pq_.a", "_pq_.b"}), &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 3 << 16, UnrecognizedOptions: []string{"_pq_.a", "_pq_.b"}}},
		"no such protocol": {AppendNegotiate(nil, 2, nil), &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 3<<16 | 2}},
	} {
		f := pgproto3.NewFrontend(bytes.NewReader(c.got), nil)
		got, err := f.Receive()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !sameMessage(got, c.want) {
			t.Errorf("%s: read as %+v, want %+v", name, got, c.want)
		}
		oneFrame(t, name, c.got)
	}
}

func TestClientMessagesAreReadByAServer(t *testing.T) {
	for name, c := range map[string]struct {
		got  []byte
		auth uint32
		want pgproto3.FrontendMessage
	}{
		"query":     {AppendQuery(nil, "select 'ü'"), 0, &pgproto3.Query{String: "select 'ü'"}},
		"no query":  {AppendQuery(nil, ""), 0, &pgproto3.Query{}},
		"sync":      {AppendSync(nil), 0, &pgproto3.Sync{}},
		"terminate": {AppendTerminate(nil), 0, &pgproto3.Terminate{}},
		"copy fail": {AppendCopyFail(nil, "gone"), 0, &pgproto3.CopyFail{Message: "gone"}},
		"password":  {AppendPassword(nil, []byte("secret\x00")), pgproto3.AuthTypeCleartextPassword, &pgproto3.PasswordMessage{Password: "secret"}},
		"scram":     {AppendPassword(nil, []byte("c=1")), pgproto3.AuthTypeSASLContinue, &pgproto3.SASLResponse{Data: []byte("c=1")}},
	} {
		b := pgproto3.NewBackend(bytes.NewReader(c.got), nil)
		if err := b.SetAuthType(c.auth); err != nil {
			t.Fatal(err)
		}
		got, err := b.Receive()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !sameMessage(got, c.want) {
			t.Errorf("%s: read as %+v, want %+v", name, got, c.want)
		}
		oneFrame(t, name, c.got)
	}
}

// sameMessage compares what counts: a missing list is an empty list.
func sameMessage(a, b pgproto3.Message) bool {
	encode := func(m pgproto3.Message) []byte {
		out, err := m.Encode(nil)
		if err != nil {
			panic(err)
		}
		return out
	}
	return reflect.TypeOf(a) == reflect.TypeOf(b) && bytes.Equal(encode(a), encode(b))
}

func oneFrame(t *testing.T, name string, b []byte) {
	t.Helper()
	if frames, rest, err := walk(b, 10000); len(frames) != 1 || len(rest) > 0 || err != nil {
		t.Errorf("%s: %d frames, %d bytes left, %v", name, len(frames), len(rest), err)
	}
}

// Messages are put behind what is there.
func TestAppendingKeepsWhatIsThere(t *testing.T) {
	for name, f := range map[string]func([]byte) []byte{
		"error":     func(b []byte) []byte { return AppendError(b, Fatal, "08P01", "no") },
		"hint":      func(b []byte) []byte { return AppendErrorHint(b, Fatal, "08P01", "no", "why") },
		"notice":    func(b []byte) []byte { return AppendNotice(b, "hm") },
		"query":     func(b []byte) []byte { return AppendQuery(b, "select 1") },
		"sync":      AppendSync,
		"terminate": AppendTerminate,
		"TLS":       AppendSSLRequest,
		"copy fail": func(b []byte) []byte { return AppendCopyFail(b, "no") },
		"ready":     func(b []byte) []byte { return AppendReady(b, StatusIdle) },
		"auth":      func(b []byte) []byte { return AppendAuth(b, AuthOK, nil) },
		"parameter": func(b []byte) []byte { return AppendParameterStatus(b, "a", "b") },
		"key":       func(b []byte) []byte { return AppendBackendKey(b, 1, []byte("1234")) },
		"negotiate": func(b []byte) []byte { return AppendNegotiate(b, 0, []string{"_pq_.x"}) },
		"password":  func(b []byte) []byte { return AppendPassword(b, []byte("x\x00")) },
		"startup":   func(b []byte) []byte { return AppendStartup(b, []Parameter{{"user", "u"}}) },
		"cancel":    func(b []byte) []byte { return AppendCancel(b, 1, []byte("1234")) },
	} {
		alone, behind := f(nil), f([]byte("before"))
		if string(behind) != "before"+string(alone) {
			t.Errorf("%s: %q alone has become %q", name, alone, behind)
		}
	}
}

func TestReadErrorTakesWhatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want ErrorFields
	}{
		"all of it":                   {"SFEHLER\x00VERROR\x00C42601\x00Mno\x00Hhint\x00Ffile.c\x00\x00", ErrorFields{"ERROR", "42601", "no"}},
		"the severity in English":     {"VFATAL\x00SFATALE\x00C57P01\x00Mbye\x00\x00", ErrorFields{"FATAL", "57P01", "bye"}},
		"an old server's":             {"SFATAL\x00C3D000\x00Mno\x00\x00", ErrorFields{"FATAL", "3D000", "no"}},
		"no SQLSTATE":                 {"SERROR\x00Mno\x00\x00", ErrorFields{"ERROR", "", "no"}},
		"no severity":                 {"C42601\x00Mno\x00\x00", ErrorFields{"", "42601", "no"}},
		"no message":                  {"SERROR\x00C42601\x00\x00", ErrorFields{"ERROR", "42601", ""}},
		"no fields":                   {"\x00", ErrorFields{}},
		"no body":                     {"", ErrorFields{}},
		"no terminator":               {"SERROR\x00C42601\x00", ErrorFields{"ERROR", "42601", ""}},
		"a field cut short":           {"SERROR\x00C426", ErrorFields{"ERROR", "", ""}},
		"a field of its type alone":   {"SERROR\x00C", ErrorFields{"ERROR", "", ""}},
		"bytes behind the terminator": {"SERROR\x00\x00C42601\x00Mno\x00\x00", ErrorFields{"ERROR", "", ""}},
		"a field twice":               {"C42601\x00C42P01\x00\x00", ErrorFields{"", "42P01", ""}},
		"unknown fields":              {"?what\x00C42601\x00\xffx\x00\x00", ErrorFields{"", "42601", ""}},
		"empty fields":                {"S\x00V\x00C\x00M\x00\x00", ErrorFields{}},
	} {
		if got := ReadError([]byte(c.body)); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

// Against pgproto3, and against writing it again.
func FuzzReadError(f *testing.F) {
	f.Add([]byte("SERROR\x00VERROR\x00C42601\x00Mno\x00\x00"))
	f.Add([]byte("Mno\x00"))
	f.Add([]byte("\x00C42601\x00"))
	f.Add([]byte("C"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got := ReadError(body)
		again := AppendError(nil, got.Severity, got.Code, got.Message)[HeaderSize:]
		if back := ReadError(again); back != got {
			t.Fatalf("%+v is written and read as %+v", got, back)
		}
		if n := len(got.Severity) + len(got.Code) + len(got.Message); n > len(body) {
			t.Fatalf("%d bytes were read as %d", len(body), n)
		}
		if strings.ContainsRune(got.Severity+got.Code+got.Message, 0) {
			t.Fatalf("NUL in %+v", got)
		}
		var theirs pgproto3.ErrorResponse
		if theirs.Decode(body) != nil {
			return
		}
		want := ErrorFields{theirs.SeverityUnlocalized, theirs.Code, theirs.Message}
		if want.Severity == "" {
			want.Severity = theirs.Severity
		}
		if got.Code != want.Code || got.Message != want.Message {
			t.Fatalf("read %+v, pgproto3 reads %+v", got, want)
		}
	})
}
