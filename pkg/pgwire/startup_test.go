package pgwire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5/pgproto3"
)

// packet is a first packet with a true length.
func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	b = binary.BigEndian.AppendUint32(b, code)
	return append(b, body...)
}

const version3 = 3 << 16

// S60
func TestReadFirstReadsWhatClientsSay(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want First
	}{
		"TLS":                 {packet(80877103, ""), SSLRequest{}},
		"GSSAPI":              {packet(80877104, ""), GSSENCRequest{}},
		"cancel, 3.0":         {packet(80877102, "\x80\x00\x00\x01\x01\x02\x03\x04"), CancelRequest{PID: 1<<31 | 1, Key: []byte{1, 2, 3, 4}}},
		"cancel, longest key": {packet(80877102, "\x00\x00\x00\x07"+strings.Repeat("k", 256)), CancelRequest{PID: 7, Key: bytes.Repeat([]byte("k"), 256)}},
		"as libpq": {packet(version3, "user\x00app\x00database\x00shop\x00application_name\x00psql\x00client_encoding\x00UTF8\x00\x00"),
			Startup{Major: 3, User: "app", Database: "shop", Parameters: []Parameter{{"application_name", "psql"}, {"client_encoding", "UTF8"}}}},
		"the user alone":  {packet(version3, "user\x00app\x00\x00"), Startup{Major: 3, User: "app", Database: "app"}},
		"no database":     {packet(version3, "user\x00app\x00database\x00\x00\x00"), Startup{Major: 3, User: "app", Database: "app"}},
		"the user last":   {packet(version3, "database\x00shop\x00user\x00app\x00\x00"), Startup{Major: 3, User: "app", Database: "shop"}},
		"version 3.2":     {packet(version3|2, "user\x00app\x00\x00"), Startup{Major: 3, Minor: 2, User: "app", Database: "app"}},
		"version 3.9999":  {packet(version3|9999, "user\x00app\x00\x00"), Startup{Major: 3, Minor: 9999, User: "app", Database: "app"}},
		"replication":     {packet(version3, "user\x00app\x00replication\x00database\x00\x00"), Startup{Major: 3, User: "app", Database: "app", Replication: "database"}},
		"options":         {packet(version3, "user\x00app\x00options\x00-c a=b\x00\x00"), Startup{Major: 3, User: "app", Database: "app", Options: "-c a=b"}},
		"protocol option": {packet(version3, "user\x00app\x00_pq_.x\x001\x00_pq_.y\x00\x00\x00"), Startup{Major: 3, User: "app", Database: "app", ProtocolOptions: []string{"_pq_.x", "_pq_.y"}}},
		"an empty value":  {packet(version3, "user\x00app\x00application_name\x00\x00\x00"), Startup{Major: 3, User: "app", Database: "app", Parameters: []Parameter{{"application_name", ""}}}},
		// As in PostgreSQL the last one counts.
		"a user twice":                   {packet(version3, "user\x00app\x00user\x00root\x00\x00"), Startup{Major: 3, User: "root", Database: "root"}},
		"a parameter in two spellings":   {packet(version3, "user\x00app\x00TimeZone\x00UTC\x00timezone\x00CET\x00\x00"), Startup{Major: 3, User: "app", Database: "app", Parameters: []Parameter{{"TimeZone", "CET"}}}},
		"a name that is only nearly one": {packet(version3, "user\x00app\x00User\x00root\x00\x00"), Startup{Major: 3, User: "app", Database: "app", Parameters: []Parameter{{"User", "root"}}}},
		"odd bytes":                      {packet(version3, "user\x00a'\"\\\xff\n\x00\x00"), Startup{Major: 3, User: "a'\"\\\xff\n", Database: "a'\"\\\xff\n"}},
	} {
		got, n, err := ReadFirst(append(slices.Clone(c.in), "what follows"...))
		if err != nil || n != len(c.in) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %#v, %d, %v; want %#v, %d", name, got, n, err, c.want, len(c.in))
		}
	}
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// The attacks, and what each is told. A refusal comes as soon as it is certain: early says after how many bytes.
var attacks = map[string]struct {
	in    []byte
	early int // 0: after the whole packet
	want  string
}{
	"negative length":                  {be32(1<<32 - 1), 4, "invalid length of startup packet: -1, allowed is 8 to 10000"},
	"most negative length":             {be32(1 << 31), 4, "invalid length of startup packet: -2147483648, allowed is 8 to 10000"},
	"length zero":                      {be32(0), 4, "invalid length of startup packet: 0, allowed is 8 to 10000"},
	"length without a code":            {be32(4), 4, "invalid length of startup packet: 4, allowed is 8 to 10000"},
	"length seven":                     {be32(7), 4, "invalid length of startup packet: 7, allowed is 8 to 10000"},
	"one byte too long":                {be32(10001), 4, "invalid length of startup packet: 10001, allowed is 8 to 10000"},
	"endless":                          {be32(1<<31 - 1), 4, "invalid length of startup packet: 2147483647, allowed is 8 to 10000"},
	"TLS without asking":               {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 4, "invalid length of startup packet: 369295618, allowed is 8 to 10000"},
	"HTTP GET":                         {[]byte("GET / HTTP/1.1\r\n\r\n"), 4, "invalid length of startup packet: 1195725856, allowed is 8 to 10000"},
	"a Query before login":             {AppendQuery(nil, "select 1"), 4, "invalid length of startup packet: 1358954496, allowed is 8 to 10000"},
	"TLS request with a body":          {packet(80877103, "x"), 8, "invalid length of encryption request: 9, allowed is 8"},
	"GSSAPI request with a body":       {packet(80877104, "\x00\x00\x00\x00"), 8, "invalid length of encryption request: 12, allowed is 8"},
	"cancel without a key":             {packet(80877102, "\x00\x00\x00\x01"), 8, "bad cancel request: length is 12, allowed is 16 to 268"},
	"cancel with a short key":          {packet(80877102, "\x00\x00\x00\x01abc"), 8, "bad cancel request: length is 15, allowed is 16 to 268"},
	"cancel with an endless key":       {packet(80877102, strings.Repeat("k", 4+257)), 8, "bad cancel request: length is 269, allowed is 16 to 268"},
	"cancel alone":                     {packet(80877102, ""), 8, "bad cancel request: length is 8, allowed is 16 to 268"},
	"protocol 2.0":                     {packet(2<<16, strings.Repeat("\x00", 288)), 8, "old V2 protocol not supported: use a client that speaks protocol 3"},
	"protocol 1.0":                     {packet(1<<16, "user\x00app\x00\x00"), 8, "unsupported frontend protocol 1.0: server supports 3.0 to 3.2"},
	"protocol 0.0":                     {packet(0, ""), 8, "unsupported frontend protocol 0.0: server supports 3.0 to 3.2"},
	"protocol 4.0":                     {packet(4<<16, "user\x00app\x00\x00"), 8, "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"},
	"protocol 65535.65535":             {packet(1<<32-1, "user\x00app\x00\x00"), 8, "unsupported frontend protocol 65535.65535: server supports 3.0 to 3.2"},
	"an unknown request":               {packet(80877105, ""), 8, "unsupported frontend protocol 1234.5681: server supports 3.0 to 3.2"},
	"no parameters":                    {packet(version3, ""), 0, "invalid startup packet layout: expected a terminator as the last byte"},
	"a terminator alone":               {packet(version3, "\x00"), 0, "no PostgreSQL user name specified in startup packet"},
	"no user":                          {packet(version3, "database\x00shop\x00\x00"), 0, "no PostgreSQL user name specified in startup packet"},
	"an empty user":                    {packet(version3, "user\x00\x00database\x00shop\x00\x00"), 0, "no PostgreSQL user name specified in startup packet"},
	"a user made empty":                {packet(version3, "user\x00app\x00user\x00\x00\x00"), 0, "no PostgreSQL user name specified in startup packet"},
	"no terminator":                    {packet(version3, "user\x00app\x00"), 0, "invalid startup packet layout: expected a terminator as the last byte"},
	"a name without an end":            {packet(version3, "user"), 0, "invalid startup packet layout: expected a terminator as the last byte"},
	"a name without a value":           {packet(version3, "user\x00"), 0, "invalid startup packet layout: a parameter has no value"},
	"a value without an end":           {packet(version3, "user\x00app"), 0, "invalid startup packet layout: a parameter has no value"},
	"a value eaten by the terminator":  {packet(version3, "user\x00app\x00database\x00"), 0, "invalid startup packet layout: a parameter has no value"},
	"a byte behind the terminator":     {packet(version3, "user\x00app\x00\x00x"), 0, "invalid startup packet layout: expected terminator as last byte"},
	"a second terminator":              {packet(version3, "user\x00app\x00\x00\x00"), 0, "invalid startup packet layout: expected terminator as last byte"},
	"another user behind a terminator": {packet(version3, "user\x00app\x00\x00user\x00root\x00\x00"), 0, "invalid startup packet layout: expected terminator as last byte"},
	"a parameter without a name":       {packet(version3, "\x00x\x00user\x00app\x00\x00"), 0, "invalid startup packet layout: expected terminator as last byte"},
}

func TestReadFirstRefusesAttacks(t *testing.T) {
	for name, c := range attacks {
		early := c.early
		if early == 0 {
			early = len(c.in)
		}
		for n := range len(c.in) + 1 {
			first, took, err := ReadFirst(c.in[:n])
			if first != nil || took != 0 {
				t.Errorf("%s: %d bytes are read as %#v, %d", name, n, first, took)
			}
			if n < early && err != nil {
				t.Errorf("%s: refused after %d bytes: %v", name, n, err)
			}
			if n >= early && (err == nil || err.Error() != c.want) {
				t.Errorf("%s: after %d bytes: %v, want %s", name, n, err, c.want)
			}
		}
	}
}

// S58
func TestAStartupPacketMayComeByteByByte(t *testing.T) {
	in := AppendStartup(nil, []Parameter{{"user", "app"}, {"database", "shop"}, {"application_name", strings.Repeat("x", 5000)}})
	for n := range in {
		if first, took, err := ReadFirst(in[:n]); first != nil || took != 0 || err != nil {
			t.Fatalf("%d bytes: got %#v, %d, %v", n, first, took, err)
		}
	}
	if _, took, err := ReadFirst(in); took != len(in) || err != nil {
		t.Errorf("got %d, %v", took, err)
	}
}

// The packet of a client that is not logged in yet; it is as long as it may be, and has as many names as fit.
func BenchmarkALargeStartupPacket(b *testing.B) {
	var body strings.Builder
	for i := 0; body.Len() < MaxStartupSize-30; i++ {
		fmt.Fprintf(&body, "%x\x00\x00", i)
	}
	in := packet(version3, "user\x00a\x00"+body.String()+"\x00")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := ReadFirst(in); err != nil {
			b.Fatal(err)
		}
	}
}

// S27
func TestCancelRequestsKeepTheirKeys(t *testing.T) {
	for _, n := range []int{4, 5, 8, 32, MaxCancelKey} {
		want := CancelRequest{PID: 7, Key: bytes.Repeat([]byte{byte(n)}, n)}
		in := AppendCancel(nil, want.PID, want.Key)
		if got, took, err := ReadFirst(in); err != nil || took != len(in) || !reflect.DeepEqual(got, First(want)) {
			t.Errorf("a key of %d bytes: got %v, %d, %v", n, got, took, err)
		}
	}
}

func TestWhatIsReadIsACopy(t *testing.T) {
	for _, in := range [][]byte{
		AppendStartup(nil, []Parameter{{"user", "app"}, {"database", "shop"}, {"a", "b"}, {"_pq_.x", "1"}, {"options", "-c a=b"}}),
		AppendCancel(nil, 1, []byte("secret")),
	} {
		got, _, err := ReadFirst(in)
		if err != nil {
			t.Fatal(err)
		}
		before := fmt.Sprintf("%#v", got)
		for i := range in {
			in[i] = 0xcc
		}
		if after := fmt.Sprintf("%#v", got); after != before {
			t.Errorf("was %s, is %s after the buffer was used again", before, after)
		}
	}
}

// rewrite is the packet that a Startup came from, but for the version and values of protocol options.
func rewrite(s Startup) []byte {
	list := append([]Parameter{{"user", s.User}, {"database", s.Database}, {"replication", s.Replication}, {"options", s.Options}}, s.Parameters...)
	for _, name := range s.ProtocolOptions {
		list = append(list, Parameter{name, "x"})
	}
	return AppendStartup(nil, list)
}

func FuzzReadFirst(f *testing.F) {
	f.Add(AppendStartup(nil, []Parameter{{"user", "app"}, {"database", "shop"}, {"TimeZone", "UTC"}, {"timezone", "CET"}, {"_pq_.x", ""}}))
	f.Add(append(packet(80877103, ""), AppendStartup(nil, []Parameter{{"user", "app"}})...))
	f.Add(AppendCancel(nil, 7, []byte("secret")))
	f.Add(packet(80877104, ""))
	f.Add(packet(2<<16, "user"))
	f.Add(packet(version3|2, "user\x00app\x00options\x00-c a=b\x00replication\x00true\x00\x00"))
	f.Add(packet(version3, "user\x00app\x00\x00user\x00root\x00\x00"))
	for _, attack := range attacks {
		f.Add(attack.in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		first, n, err := ReadFirst(in)
		if n < 0 || n > len(in) || n > MaxStartupSize || (first == nil) != (n == 0) || err != nil && n != 0 {
			t.Fatalf("%d bytes were read as %#v, %d, %v", len(in), first, n, err)
		}
		// The answer is the same for every longer input, and nothing is known before it is there.
		decided := false
		for m := range min(len(in), MaxStartupSize) {
			f, took, e := ReadFirst(in[:m])
			if decided = decided || took > 0 || e != nil; !decided {
				continue
			}
			if took != n || !reflect.DeepEqual(f, first) || fmt.Sprint(e) != fmt.Sprint(err) {
				t.Fatalf("%d bytes: %#v, %d, %v; %d bytes: %#v, %d, %v", m, f, took, e, len(in), first, n, err)
			}
			if took > m {
				t.Fatalf("%d bytes were read of %d", took, m)
			}
		}
		if n == 0 {
			return
		}
		var again []byte
		switch first := first.(type) {
		case SSLRequest:
			again = packet(codeSSL, "")
		case GSSENCRequest:
			again = packet(codeGSSENC, "")
		case CancelRequest:
			again = AppendCancel(nil, first.PID, first.Key)
		case Startup:
			if first.User == "" || first.Database == "" || first.Major != 3 {
				t.Fatalf("accepted %#v", first)
			}
			back, _, err := ReadFirst(rewrite(first))
			first.Minor = 0
			if err != nil || !reflect.DeepEqual(back, First(first)) {
				t.Fatalf("%#v was written and read as %#v, %v", first, back, err)
			}
			checkAgainstDriver(t, in[:n], first)
			return
		}
		if !bytes.Equal(again, in[:n]) {
			t.Fatalf("%q was read as %#v", in[:n], first)
		}
	})
}

// checkAgainstDriver has pgproto3 read what we accept: two readers must not find two users.
func checkAgainstDriver(t *testing.T, in []byte, s Startup) {
	t.Helper()
	b := slices.Clone(in[4:])
	binary.BigEndian.PutUint32(b, version3)
	var theirs pgproto3.StartupMessage
	if err := theirs.Decode(b); err != nil {
		t.Fatalf("accepted %q, which pgproto3 does not: %v", in, err)
	}
	database := theirs.Parameters["database"]
	if database == "" {
		database = theirs.Parameters["user"]
	}
	if theirs.Parameters["user"] != s.User || database != s.Database || theirs.Parameters["options"] != s.Options {
		t.Fatalf("read %#v, pgproto3 reads %#v", s, theirs.Parameters)
	}
	for _, p := range s.Parameters {
		_, known := theirs.Parameters[p.Name]
		if !known {
			t.Fatalf("read %#v, pgproto3 reads %#v", s, theirs.Parameters)
		}
	}
}

func TestParseOptions(t *testing.T) {
	type list = []Parameter
	for name, c := range map[string]struct {
		in   string
		want []Parameter
		err  string
	}{
		"nothing":              {"", nil, ""},
		"blanks":               {" \t\n\r\f\v", nil, ""},
		"-c with a blank":      {"-c a=b", list{{"a", "b"}}, ""},
		"-c without":           {"-ca=b", list{{"a", "b"}}, ""},
		"--":                   {"--a=b", list{{"a", "b"}}, ""},
		"several":              {"-c a=b  --c-d=e\t-cf=g", list{{"a", "b"}, {"c_d", "e"}, {"f", "g"}}, ""},
		"dashes in a name":     {"-c default-transaction-isolation=read-only", list{{"default_transaction_isolation", "read-only"}}, ""},
		"a dotted name":        {"-c my.setting=1", list{{"my.setting", "1"}}, ""},
		"an empty value":       {"-c a=", list{{"a", ""}}, ""},
		"= in a value":         {"-c a=b=c", list{{"a", "b=c"}}, ""},
		"an escaped blank":     {`-c search_path=a,\ b`, list{{"search_path", "a, b"}}, ""},
		"an escaped backslash": {`-c a=\\`, list{{"a", `\`}}, ""},
		"a backslash at end":   {`-c a=b\`, list{{"a", "b"}}, ""},
		"an escaped dash":      {`\-c a=b`, list{{"a", "b"}}, ""},
		"the same twice":       {"-c a=b -c a=c", list{{"a", "b"}, {"a", "c"}}, ""},
		"-c alone":             {"-c", nil, "unsupported startup parameter in options: -c has no setting"},
		"-c at the end":        {"-c a=b -c ", nil, "unsupported startup parameter in options: -c has no setting"},
		"no value":             {"-c a", nil, `unsupported startup parameter in options: "a" is not name=value`},
		"no name":              {"-c =b", nil, `unsupported startup parameter in options: "=b" is not name=value`},
		"-- alone":             {"--", nil, `unsupported startup parameter in options: "" is not name=value`},
		"another flag":         {"-c a=b -d 5", nil, `unsupported startup parameter in options: "-d", allowed are -c name=value and --name=value`},
		"a word":               {"a=b", nil, `unsupported startup parameter in options: "a=b", allowed are -c name=value and --name=value`},
		"a backslash alone":    {`\`, nil, `unsupported startup parameter in options: "", allowed are -c name=value and --name=value`},
		"a control character":  {"\x1b[31m", nil, `unsupported startup parameter in options: "\x1b[31m", allowed are -c name=value and --name=value`},
		"an endless word":      {strings.Repeat("x", 9000), nil, `unsupported startup parameter in options: "` + strings.Repeat("x", 64) + `…", allowed are -c name=value and --name=value`},
	} {
		got, err := ParseOptions(c.in)
		if (err == nil) != (c.err == "") || err != nil && err.Error() != c.err || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v, %v", name, got, err, c.want, c.err)
		}
	}
}

// splitAsPostgreSQL is pg_split_opts of PostgreSQL, line by line.
func splitAsPostgreSQL(s string) (words []string) {
	isspace := func(c byte) bool { return c < 0x80 && unicode.IsSpace(rune(c)) }
	for i := 0; i < len(s); {
		for i < len(s) && isspace(s[i]) {
			i++
		}
		if i == len(s) {
			break
		}
		var word []byte
		escaped := false
		for ; i < len(s); i++ {
			if isspace(s[i]) && !escaped {
				break
			}
			if !escaped && s[i] == '\\' {
				escaped = true
			} else {
				escaped = false
				word = append(word, s[i])
			}
		}
		words = append(words, string(word))
	}
	return words
}

func FuzzParseOptions(f *testing.F) {
	f.Add("-c a=b --c-d=e -cf=g")
	f.Add(`-c search_path=a,\ b\\ \`)
	f.Add("-c")
	f.Add("--=x")
	f.Add("\\\n\v\\")
	escape := strings.NewReplacer(`\`, `\\`, " ", `\ `, "\t", "\\\t", "\n", "\\\n", "\r", "\\\r", "\f", "\\\f", "\v", "\\\v")
	f.Fuzz(func(t *testing.T, options string) {
		if got, want := splitOptions(options), splitAsPostgreSQL(options); !slices.Equal(got, want) {
			t.Fatalf("%q: split into %q, PostgreSQL does %q", options, got, want)
		}
		got, err := ParseOptions(options)
		if err != nil {
			if len(got) > 0 || len(err.Error()) > 500 {
				t.Fatalf("%q: got %v, %v", options, got, err)
			}
			return
		}
		var again strings.Builder
		for _, p := range got {
			if p.Name == "" || strings.Contains(p.Name, "-") || len(p.Name)+len(p.Value) > len(options) {
				t.Fatalf("%q: got %v", options, got)
			}
			again.WriteString("-c " + escape.Replace(p.Name+"="+p.Value) + " ")
		}
		if back, err := ParseOptions(again.String()); err != nil || !slices.Equal(back, got) {
			t.Fatalf("%v was written %q and read as %v, %v", got, again.String(), back, err)
		}
	})
}
