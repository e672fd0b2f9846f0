package proxy

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/pgberth/pgberth/pkg/pgwire"
)

// row builds the body of a DataRow.
func row(values ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(values)))
	for _, v := range values {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
	}
	return b
}

// columns builds the body of a RowDescription whose columns have these types.
func columns(oids ...uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(oids)))
	for _, oid := range oids {
		b = append(b, "name\x00\x00\x00\x00\x00\x00\x00"...)
		b = append(binary.BigEndian.AppendUint32(b, oid), make([]byte, 8)...)
	}
	return b
}

func TestAnswersOfAHostileServerToAuthQuery(t *testing.T) {
	whole := columns(25, 25)
	for attack, c := range map[string]struct {
		typ  byte
		body []byte
		want string
	}{
		"no row count":            {pgwire.RowDescription, nil, "the server describes its columns by 0 bytes"},
		"columns cut short":       {pgwire.RowDescription, whole[:len(whole)-1], "the server's description of its columns is cut short"},
		"a name without end":      {pgwire.RowDescription, []byte("\x00\x02name"), "the server's description of its columns is cut short"},
		"65535 columns":           {pgwire.RowDescription, []byte("\xff\xff"), "it returns 65535 columns; allowed are 2: the user's name and secret"},
		"an empty row":            {pgwire.DataRow, nil, "the server's row does not have 2 columns"},
		"a row of one":            {pgwire.DataRow, row("app"), "the server's row does not have 2 columns"},
		"a row cut short":         {pgwire.DataRow, row("app", "secret")[:8], "the server's row is cut short, or too long"},
		"a row with more behind":  {pgwire.DataRow, append(row("app", "secret"), 0), "the server's row is cut short, or too long"},
		"a value of 2 GB":         {pgwire.DataRow, []byte("\x00\x02\x7f\xff\xff\xffapp"), "the server's row is cut short, or too long"},
		"a value of length -2":    {pgwire.DataRow, []byte("\x00\x02\xff\xff\xff\xfe"), "the server's row is cut short, or too long"},
		"a secret with a NUL":     {pgwire.DataRow, row("app", "sec\x00ret"), "the secret in its second column has a NUL byte; allowed are a password, md5… and SCRAM-SHA-256$…"},
		"the beginning of a COPY": {pgwire.CopyInResponse, nil, "it is a COPY; allowed is a query with two columns: the user's name and secret"},
	} {
		var a answer
		a.heard(c.typ, pgwire.HeaderSize+len(c.body), c.body)
		if f := a.finding("app", nil); f.found || f.repair != c.want || f.reason != "auth_query failed" {
			t.Errorf("%s: got %+v", attack, f)
		}
	}
}

func TestErrorsOfAuthQueryAreTheOperatorsOrTheServers(t *testing.T) {
	for code, want := range map[string]finding{
		"22021": {reason: "no such user: the name is not valid in the server's encoding"},
		"57014": {repair: "no (SQLSTATE 57014)", code: "08006", refusal: cannotLookUp},
		"57P01": {repair: "no (SQLSTATE 57P01)", code: "08006", refusal: cannotLookUp},
		"":      {reason: "auth_query failed", repair: "no (SQLSTATE ): auth_query must return one row of two columns for the user $1"},
	} {
		var a answer
		if got := a.finding("app", &pgwire.ErrorFields{Code: code, Message: "no"}); got != want {
			t.Errorf("%s: got %+v", code, got)
		}
	}
	var a answer
	if f := a.finding("app", &pgwire.ErrorFields{Code: "42601", Message: strings.Repeat("x", 1<<20)}); len(f.repair) > 500 {
		t.Errorf("a message of %d bytes goes into the log", len(f.repair))
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(columns(25, 25), row("app", "secret"))
	f.Add(columns(17), row())
	f.Add([]byte{}, []byte("\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, head, body []byte) {
		var a answer
		a.heard(pgwire.RowDescription, pgwire.HeaderSize+len(head), head)
		a.heard(pgwire.DataRow, pgwire.HeaderSize+len(body), body)
		got := a.finding("app", nil)
		if !got.found {
			return
		}
		// Only what says so of itself in full is a secret.
		if got.repair != "" || got.secret == "" || string(body) != string(row("app", got.secret)) {
			t.Errorf("%q, %q is taken for the secret %q", head, body, got.secret)
		}
	})
}
