package pgtest

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestNotesBecomeMessages(t *testing.T) {
	cases := []struct {
		line string
		want pgproto3.FrontendMessage
	}{
		{`Query "select\t'ü'"`, &pgproto3.Query{String: "select\t'ü'"}},
		{`Query "a" + repeat("bc" 2) + hex:64`, &pgproto3.Query{String: "abcbcd"}},
		{`Parse ""`, &pgproto3.Parse{}},
		{`Parse "q" name=s types=[int4 text 12345 0]`, &pgproto3.Parse{Query: "q", Name: "s", ParameterOIDs: []uint32{23, 25, 12345, 0}}},
		{`Bind`, &pgproto3.Bind{}},
		{`Bind portal="p p" statement=s formats=[text binary] params=["x" null hex: hex:00ff repeat("y" 3)] results=[binary]`, &pgproto3.Bind{
			DestinationPortal: "p p", PreparedStatement: "s", ParameterFormatCodes: []int16{0, 1},
			Parameters: [][]byte{[]byte("x"), nil, {}, {0, 255}, []byte("yyy")}, ResultFormatCodes: []int16{1},
		}},
		{`Describe statement=""`, &pgproto3.Describe{ObjectType: 'S'}},
		{`Describe portal=p`, &pgproto3.Describe{ObjectType: 'P', Name: "p"}},
		{`Close statement=s`, &pgproto3.Close{ObjectType: 'S', Name: "s"}},
		{`Execute portal=p rows=7`, &pgproto3.Execute{Portal: "p", MaxRows: 7}},
		{`Sync`, &pgproto3.Sync{}},
		{`Flush`, &pgproto3.Flush{}},
		{`Terminate`, &pgproto3.Terminate{}},
		{`CopyData "1\n"`, &pgproto3.CopyData{Data: []byte("1\n")}},
		{`CopyDone`, &pgproto3.CopyDone{}},
		{`CopyFail "why"`, &pgproto3.CopyFail{Message: "why"}},
		{`FunctionCall 177 formats=[text] args=["1" null] result=binary`, &pgproto3.FunctionCall{
			Function: 177, ArgFormatCodes: []uint16{0}, Arguments: [][]byte{[]byte("1"), nil}, ResultFormatCode: 1,
		}},
		{`Password secret`, &pgproto3.PasswordMessage{Password: "secret"}},
		{`SSLRequest`, &pgproto3.SSLRequest{}},
		{`GSSENCRequest`, &pgproto3.GSSEncRequest{}},
	}
	for _, c := range cases {
		n, err := parseNote(c.line)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		got, err := encodeNote(n)
		want, _ := c.want.Encode(nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s gives %q, %v, want %q", c.line, got, err, want)
		}
	}
}

func TestBrokenNotesAreRefused(t *testing.T) {
	cases := []struct{ line, want string }{
		{``, `a message's name expected`},
		{`"Query"`, `a message's name expected`},
		{`Qwery "x"`, `there is no message of this name to send`},
		{`Query`, `a value is missing`},
		{`Query "x" "y"`, `"y" is one value too many`},
		{`Query "x`, `string expected`},
		{`Query "x" text=y`, `it has no field text`},
		{`Query ?`, `value expected`},
		{`Bind portal=a portal=b`, `field portal is given twice`},
		{`Bind portals=a`, `it has no field portals`},
		{`Bind params="x"`, `field params must be a list`},
		{`Bind params=["x"`, `a list does not end with ]`},
		{`Bind formats=[octal]`, `invalid syntax`},
		{`Parse "x" types=[int]`, `"int" is neither a type's name known here nor its number`},
		{`Describe`, `one of statement= and portal= is needed`},
		{`Close statement=a portal=b`, `one of statement= and portal= is needed`},
		{`Execute rows=many`, `invalid syntax`},
		{`CopyData hex:0`, `odd length`},
		{`CopyData repeat("x")`, `repeat needs a string and a count`},
		{`CopyData repeat("x" 99999999)`, `repeat needs a string and a count`},
	}
	for _, c := range cases {
		n, err := parseNote(c.line)
		if err == nil {
			_, err = encodeNote(n)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error about %q", c.line, err, c.want)
		}
	}
}

func renderMessage(t *testing.T, m pgproto3.BackendMessage) string {
	t.Helper()
	b, err := m.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return render(b[0], b[5:])
}

func TestMessagesAreRendered(t *testing.T) {
	long := strings.Repeat("x", 101)
	cases := []struct {
		message pgproto3.BackendMessage
		want    string
	}{
		{&pgproto3.ReadyForQuery{TxStatus: 'T'}, `ReadyForQuery T`},
		{&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, `CommandComplete "SELECT 1"`},
		{&pgproto3.DataRow{Values: [][]byte{nil, {}, []byte("a\nb"), {0}, []byte(long)}}, `DataRow [null "" "a\nb" hex:00 "xxxxxxxxxxxxxxxxxxxx"… (101 bytes, crc32 f185866f)]`},
		{&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{
			{Name: []byte("id"), DataTypeOID: 23, TypeModifier: -1, TableOID: 99999, TableAttributeNumber: 2},
			{Name: []byte("?column?"), DataTypeOID: 1043, TypeModifier: 14, Format: 1},
			{Name: []byte("mine"), DataTypeOID: 16385, TypeModifier: -1},
			{Name: []byte("odd"), DataTypeOID: 603, TypeModifier: -1, Format: 9},
		}}, `RowDescription [id:int4@2 "?column?":varchar(14):binary mine:user-defined odd:603:9]`},
		{&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "42601", Message: `a "b"`, Hint: "try", Position: 3, File: "scan.l", Line: 1, Routine: "r"},
			`ErrorResponse ERROR 42601 "a \"b\"" hint="try" position=3`},
		{&pgproto3.NoticeResponse{Severity: "HINWEIS", SeverityUnlocalized: "NOTICE", Code: "00000", Message: "m"}, `NoticeResponse HINWEIS 00000 "m" unlocalized=NOTICE`},
		{&pgproto3.ErrorResponse{Message: "no SQLSTATE"}, `ErrorResponse "" "" "no SQLSTATE"`},
		{&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"}, `ParameterStatus TimeZone="UTC"`},
		{&pgproto3.ParameterDescription{ParameterOIDs: []uint32{23, 25}}, `ParameterDescription [int4 text]`},
		{&pgproto3.BackendKeyData{ProcessID: 4711, SecretKey: []byte{1, 2, 3, 4}}, `BackendKeyData key=4 bytes`},
		{&pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}}, `AuthenticationMD5Password`},
		{&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}}, `AuthenticationSASL [SCRAM-SHA-256]`},
		{&pgproto3.CopyInResponse{OverallFormat: 0, ColumnFormatCodes: []uint16{0, 1}}, `CopyInResponse text [text binary]`},
		{&pgproto3.CopyData{Data: []byte("1\t2\n")}, `CopyData "1\t2\n"`},
		{&pgproto3.FunctionCallResponse{Result: []byte("3")}, `FunctionCallResponse "3"`},
		{&pgproto3.NotificationResponse{PID: 4711, Channel: "c", Payload: "p p"}, `NotificationResponse channel=c payload="p p"`},
		{&pgproto3.NoData{}, `NoData`},
	}
	for _, c := range cases {
		if got := renderMessage(t, c.message); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestMessagesThatNobodyKnowsAreRendered(t *testing.T) {
	for body, want := range map[string]string{
		"?abc":              `Message '?' "abc"`,
		"Z":                 `Message 'Z' which cannot be decoded: `,
		"R\x00\x00\x00\x63": `Message 'R' hex:00000063`,
		"R":                 `Message 'R' ""`,
	} {
		if got := render(body[0], []byte(body[1:])); !strings.HasPrefix(got, want) {
			t.Errorf("%q is rendered as %s, want %s", body, got, want)
		}
	}
}

func TestWhatIsNotShownIsStillCompared(t *testing.T) {
	rows := func(n int, last string) []string {
		lines := make([]string, n)
		for i := range lines {
			lines[i] = `DataRow ["same"]`
		}
		lines[n-2] = last
		return lines
	}
	a, b := shorten(rows(100, "DataRow [x]")), shorten(rows(100, "DataRow [y]"))
	if len(a) != shownOfRun+1 || a[3][:len(a[3])-9] != b[3][:len(b[3])-9] || a[3] == b[3] {
		t.Errorf("got\n%q\n%q", a, b)
	}
	mixed := func(odd string) []string {
		var lines []string
		for range 100 {
			lines = append(lines, "RowDescription []", "CommandComplete x")
		}
		lines[77] = odd
		return shorten(lines)
	}
	c, d := mixed("RowDescription [a]"), mixed("RowDescription [b]")
	if len(c) != 2*shownOfList+1 || !strings.HasPrefix(c[shownOfList], "… 184 more") || c[shownOfList] == d[shownOfList] {
		t.Errorf("got\n%q\n%q", c, d)
	}
	long := func(end string) string {
		return renderMessage(t, &pgproto3.ErrorResponse{Message: strings.Repeat("ü", 1000) + end})
	}
	if x, y := long("x"), long("y"); len(x) > 2*shownOfLine || x == y || !strings.Contains(x, "(2023 bytes as text") {
		t.Errorf("got\n%s\n%s", x, y)
	}
	value := func(end byte) string {
		return renderMessage(t, &pgproto3.CopyData{Data: append(bytes.Repeat([]byte{0xfe}, 200), end)})
	}
	if x, y := value(1), value(2); x == y || !strings.Contains(x, hex.EncodeToString([]byte{0xfe, 0xfe})) {
		t.Errorf("got\n%s\n%s", x, y)
	}
}

func TestParametersReportedTogetherAreSorted(t *testing.T) {
	got := shorten([]string{"SET", "ParameterStatus b=1", "ParameterStatus a=1", "ReadyForQuery I", "ParameterStatus a=0"})
	if want := "SET|ParameterStatus a=1|ParameterStatus b=1|ReadyForQuery I|ParameterStatus a=0"; strings.Join(got, "|") != want {
		t.Errorf("got %q", got)
	}
}
