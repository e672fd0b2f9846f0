package pgtest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"
)

// encodeNote turns what a conversation file sends into bytes.
func encodeNote(n note) ([]byte, error) {
	f := fields{note: n, used: map[string]bool{}}
	m := f.message()
	if err := f.unused(); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	return m.Encode(nil)
}

// fields hands out a note's parts and remembers the first mistake and what was never asked for.
type fields struct {
	note
	used  map[string]bool
	taken int // how many of the values without name
	err   error
}

func (f *fields) message() pgproto3.FrontendMessage {
	switch f.name {
	case "Query":
		return &pgproto3.Query{String: f.next().text()}
	case "Parse":
		m := &pgproto3.Parse{Query: f.next().text(), Name: f.get("name").text()}
		for _, item := range f.list("types") {
			oid, err := typeOID(item.text())
			f.fail(err)
			m.ParameterOIDs = append(m.ParameterOIDs, oid)
		}
		return m
	case "Bind":
		m := &pgproto3.Bind{DestinationPortal: f.get("portal").text(), PreparedStatement: f.get("statement").text()}
		m.ParameterFormatCodes = formats[int16](f, "formats")
		m.ResultFormatCodes = formats[int16](f, "results")
		for _, item := range f.list("params") {
			m.Parameters = append(m.Parameters, item.bytes)
		}
		return m
	case "Describe":
		kind, name := f.object()
		return &pgproto3.Describe{ObjectType: kind, Name: name}
	case "Close":
		kind, name := f.object()
		return &pgproto3.Close{ObjectType: kind, Name: name}
	case "Execute":
		return &pgproto3.Execute{Portal: f.get("portal").text(), MaxRows: uint32(f.number("rows"))}
	case "Sync":
		return &pgproto3.Sync{}
	case "Flush":
		return &pgproto3.Flush{}
	case "Terminate":
		return &pgproto3.Terminate{}
	case "CopyData":
		return &pgproto3.CopyData{Data: f.next().bytes}
	case "CopyDone":
		return &pgproto3.CopyDone{}
	case "CopyFail":
		return &pgproto3.CopyFail{Message: f.next().text()}
	case "FunctionCall":
		oid, err := typeOID(f.next().text())
		f.fail(err)
		m := &pgproto3.FunctionCall{Function: oid, ArgFormatCodes: formats[uint16](f, "formats")}
		for _, item := range f.list("args") {
			m.Arguments = append(m.Arguments, item.bytes)
		}
		if code := formats[uint16](f, "result"); len(code) == 1 {
			m.ResultFormatCode = code[0]
		}
		return m
	case "Password":
		return &pgproto3.PasswordMessage{Password: f.next().text()}
	case "SSLRequest":
		return &pgproto3.SSLRequest{}
	case "GSSENCRequest":
		return &pgproto3.GSSEncRequest{}
	}
	f.fail(fmt.Errorf("there is no message of this name to send; raw sends any bytes"))
	return &pgproto3.Flush{}
}

func (f *fields) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// next is the value without name that the message must have.
func (f *fields) next() value {
	if f.taken >= len(f.values) {
		f.fail(fmt.Errorf("a value is missing"))
		return value{}
	}
	f.taken++
	return f.values[f.taken-1]
}

// get is a field, empty if not given.
func (f *fields) get(name string) value {
	f.used[name] = true
	return f.fields[name]
}

func (f *fields) list(name string) []value {
	v := f.get(name)
	if _, given := f.fields[name]; given && !v.list {
		f.fail(fmt.Errorf("field %s must be a list, as in %s=[a b]", name, name))
	}
	return v.items
}

func (f *fields) number(name string) int {
	v := f.get(name).text()
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	f.fail(err)
	return n
}

// object is what Describe and Close are about: exactly one of statement= and portal=.
func (f *fields) object() (kind byte, name string) {
	_, statement := f.fields["statement"]
	_, portal := f.fields["portal"]
	switch {
	case statement == portal:
		f.fail(fmt.Errorf("one of statement= and portal= is needed"))
		return 'S', ""
	case statement:
		return 'S', f.get("statement").text()
	default:
		return 'P', f.get("portal").text()
	}
}

// formats reads format codes, text and binary or any number; a single one needs no list.
func formats[T int16 | uint16](f *fields, name string) []T {
	v := f.get(name)
	items := v.items
	if _, given := f.fields[name]; given && !v.list {
		items = []value{v}
	}
	var codes []T
	for _, item := range items {
		switch s := item.text(); s {
		case "text":
			codes = append(codes, 0)
		case "binary":
			codes = append(codes, 1)
		default:
			n, err := strconv.ParseInt(s, 10, 16)
			f.fail(err)
			codes = append(codes, T(n))
		}
	}
	return codes
}

// unused is the first mistake, or what nobody asked for.
func (f *fields) unused() error {
	if f.err != nil {
		return f.err
	}
	for _, name := range slices.Sorted(maps.Keys(f.fields)) {
		if !f.used[name] {
			return fmt.Errorf("it has no field %s", name)
		}
	}
	if f.taken < len(f.values) {
		return fmt.Errorf("%q is one value too many", f.values[f.taken].text())
	}
	return nil
}
