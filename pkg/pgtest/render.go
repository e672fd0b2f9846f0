package pgtest

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"
)

// render writes a received message in the notation, without what differs from run to run: process ids, cancel keys, OIDs
// of users' tables and types, and where in PostgreSQL's source an error was raised.
func render(kind byte, body []byte) string {
	m := backendMessage(kind, body)
	if m == nil {
		return fmt.Sprintf("Message %q %s", kind, brief(body))
	}
	if err := m.Decode(body); err != nil {
		return fmt.Sprintf("Message %q which cannot be decoded: %v", kind, err)
	}
	name := strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgproto3.")
	line := strings.TrimSpace(name + " " + renderFields(m))
	if len(line) > longestLine {
		return fmt.Sprintf("%s… (%d bytes as text, crc32 %08x)", strings.ToValidUTF8(line[:shownOfLine], ""), len(line), crc32.ChecksumIEEE([]byte(line)))
	}
	return line
}

func renderFields(m pgproto3.BackendMessage) string {
	switch m := m.(type) {
	case *pgproto3.RowDescription:
		return list(m.Fields, renderColumn)
	case *pgproto3.DataRow:
		return list(m.Values, brief)
	case *pgproto3.CommandComplete:
		return strconv.Quote(string(m.CommandTag))
	case *pgproto3.ReadyForQuery:
		return string(m.TxStatus)
	case *pgproto3.ErrorResponse:
		return renderError(m)
	case *pgproto3.NoticeResponse:
		return renderError((*pgproto3.ErrorResponse)(m))
	case *pgproto3.ParameterStatus:
		return m.Name + "=" + strconv.Quote(m.Value)
	case *pgproto3.ParameterDescription:
		return list(m.ParameterOIDs, typeName)
	case *pgproto3.BackendKeyData:
		return fmt.Sprintf("key=%d bytes", len(m.SecretKey))
	case *pgproto3.AuthenticationSASL:
		return list(m.AuthMechanisms, word)
	case *pgproto3.NegotiateProtocolVersion:
		return fmt.Sprintf("version=%d.%d options=%s", m.NewestMinorProtocol>>16, m.NewestMinorProtocol&0xffff, list(m.UnrecognizedOptions, word))
	case *pgproto3.CopyInResponse:
		return renderCopy(m.OverallFormat, m.ColumnFormatCodes)
	case *pgproto3.CopyOutResponse:
		return renderCopy(m.OverallFormat, m.ColumnFormatCodes)
	case *pgproto3.CopyBothResponse:
		return renderCopy(m.OverallFormat, m.ColumnFormatCodes)
	case *pgproto3.CopyData:
		return brief(m.Data)
	case *pgproto3.FunctionCallResponse:
		return brief(m.Result)
	case *pgproto3.NotificationResponse:
		return fmt.Sprintf("channel=%s payload=%q", word(m.Channel), m.Payload)
	}
	return ""
}

// renderColumn writes name:type, then what is unusual, then @ and the number of the table's column it is.
func renderColumn(c pgproto3.FieldDescription) string {
	s := word(string(c.Name)) + ":" + typeName(c.DataTypeOID)
	if c.TypeModifier != -1 {
		s += fmt.Sprintf("(%d)", c.TypeModifier)
	}
	if c.Format != 0 {
		s += ":" + formatName(uint16(c.Format))
	}
	if c.TableOID != 0 {
		s += fmt.Sprintf("@%d", c.TableAttributeNumber)
	}
	return s
}

func renderError(m *pgproto3.ErrorResponse) string {
	s := fmt.Sprintf("%s %s %q", word(m.Severity), word(m.Code), m.Message)
	if m.SeverityUnlocalized != m.Severity {
		s += " unlocalized=" + word(m.SeverityUnlocalized)
	}
	for _, f := range []struct{ name, text string }{
		{"detail", m.Detail}, {"hint", m.Hint}, {"query", m.InternalQuery}, {"where", m.Where}, {"schema", m.SchemaName},
		{"table", m.TableName}, {"column", m.ColumnName}, {"type", m.DataTypeName}, {"constraint", m.ConstraintName},
	} {
		if f.text != "" {
			s += " " + f.name + "=" + strconv.Quote(f.text)
		}
	}
	if m.Position != 0 {
		s += fmt.Sprintf(" position=%d", m.Position)
	}
	if m.InternalPosition != 0 {
		s += fmt.Sprintf(" internal_position=%d", m.InternalPosition)
	}
	return s
}

func renderCopy(overall byte, columns []uint16) string {
	return formatName(uint16(overall)) + " " + list(columns, formatName)
}

func formatName(code uint16) string {
	switch code {
	case 0:
		return "text"
	case 1:
		return "binary"
	}
	return strconv.Itoa(int(code))
}

func list[T any](items []T, render func(T) string) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = render(item)
	}
	return "[" + strings.Join(texts, " ") + "]"
}

// word quotes what is not a word.
func word(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !isWordRune(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// What is longer than this is shown by its beginning, length and checksum, or by its first and last lines.
const (
	longestValue = 100
	shownOfValue = 20
	longestLine  = 600
	shownOfLine  = 150
	longestRun   = 8 // messages of one kind
	shownOfRun   = 3
	longestList  = 60 // messages of any kind
	shownOfList  = 8  // at either end
)

// brief writes bytes as text if they are, in hexadecimal otherwise.
func brief(b []byte) string {
	switch {
	case b == nil:
		return "null"
	case len(b) > longestValue:
		return fmt.Sprintf("%s… (%d bytes, crc32 %08x)", brief(b[:shownOfValue]), len(b), crc32.ChecksumIEEE(b))
	case !utf8.Valid(b) || slices.ContainsFunc(b, func(c byte) bool { return c < ' ' && c != '\n' && c != '\t' }):
		return fmt.Sprintf("hex:%x", b)
	}
	return strconv.Quote(string(b))
}

// shorten abbreviates long runs, then what is still long. Parameters reported together have no order of their own and
// get one.
func shorten(lines []string) []string {
	var out []string
	for start := 0; start < len(lines); {
		kind, _, _ := strings.Cut(lines[start], " ")
		end := start
		for end < len(lines) && (lines[end] == kind || strings.HasPrefix(lines[end], kind+" ")) {
			end++
		}
		run := slices.Clone(lines[start:end])
		if kind == "ParameterStatus" {
			slices.Sort(run)
		}
		if len(run) > longestRun {
			run = append(run[:shownOfRun], summary(kind, run[shownOfRun:]))
		}
		out = append(out, run...)
		start = end
	}
	if n := len(out); n > longestList {
		out = slices.Concat(out[:shownOfList], []string{summary("", out[shownOfList:n-shownOfList])}, out[n-shownOfList:])
	}
	return out
}

func summary(kind string, lines []string) string {
	return fmt.Sprintf("%s… %d more (crc32 %08x)", kind, len(lines), crc32.ChecksumIEEE([]byte(strings.Join(lines, "\n"))))
}

// backendMessage is an empty message of a kind, nil if there is none.
func backendMessage(kind byte, body []byte) pgproto3.BackendMessage {
	switch kind {
	case '1':
		return &pgproto3.ParseComplete{}
	case '2':
		return &pgproto3.BindComplete{}
	case '3':
		return &pgproto3.CloseComplete{}
	case 'A':
		return &pgproto3.NotificationResponse{}
	case 'C':
		return &pgproto3.CommandComplete{}
	case 'D':
		return &pgproto3.DataRow{}
	case 'E':
		return &pgproto3.ErrorResponse{}
	case 'G':
		return &pgproto3.CopyInResponse{}
	case 'H':
		return &pgproto3.CopyOutResponse{}
	case 'I':
		return &pgproto3.EmptyQueryResponse{}
	case 'K':
		return &pgproto3.BackendKeyData{}
	case 'N':
		return &pgproto3.NoticeResponse{}
	case 'R':
		return authentication(body)
	case 'S':
		return &pgproto3.ParameterStatus{}
	case 'T':
		return &pgproto3.RowDescription{}
	case 'V':
		return &pgproto3.FunctionCallResponse{}
	case 'W':
		return &pgproto3.CopyBothResponse{}
	case 'Z':
		return &pgproto3.ReadyForQuery{}
	case 'c':
		return &pgproto3.CopyDone{}
	case 'd':
		return &pgproto3.CopyData{}
	case 'n':
		return &pgproto3.NoData{}
	case 's':
		return &pgproto3.PortalSuspended{}
	case 't':
		return &pgproto3.ParameterDescription{}
	case 'v':
		return &pgproto3.NegotiateProtocolVersion{}
	}
	return nil
}

func authentication(body []byte) pgproto3.BackendMessage {
	if len(body) < 4 {
		return nil
	}
	switch body[3] {
	case pgproto3.AuthTypeOk:
		return &pgproto3.AuthenticationOk{}
	case pgproto3.AuthTypeCleartextPassword:
		return &pgproto3.AuthenticationCleartextPassword{}
	case pgproto3.AuthTypeMD5Password:
		return &pgproto3.AuthenticationMD5Password{}
	case pgproto3.AuthTypeSASL:
		return &pgproto3.AuthenticationSASL{}
	case pgproto3.AuthTypeSASLContinue:
		return &pgproto3.AuthenticationSASLContinue{}
	case pgproto3.AuthTypeSASLFinal:
		return &pgproto3.AuthenticationSASLFinal{}
	}
	return nil
}
