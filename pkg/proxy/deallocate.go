package proxy

import (
	"bytes"
	"strings"

	"github.com/pgberth/pgberth/pkg/pgwire"
	"github.com/pgberth/pgberth/pkg/session"
)

// longestDeallocate is the longest Query, in bytes, that is looked at for DEALLOCATE.
const longestDeallocate = 256

// deallocate looks whether a simple Query is nothing but DEALLOCATE or DISCARD, and follows what that does to prepared
// statements. It returns true when the message has been dealt with.
func (c *client) deallocate(b *batch, buf []byte, off, size int) bool {
	if size > longestDeallocate || len(buf)-off < size {
		return false
	}
	words := bytes.TrimLeft(buf[off+pgwire.HeaderSize:off+size], " \t\r\n\f")
	if len(words) < 8 || words[0]|0x20 != 'd' {
		return false
	}
	what, name := readDeallocate(string(bytes.TrimRight(words, "\x00")))
	link := &c.server.link
	switch what {
	case purges:
		link.Purge()
		return true
	case deallocates:
		n := link.Deallocate(name)
		if n.Local || n.Name != "" {
			b.keep(buf, off)
			b.from = off + size
		}
		if n.Local {
			answer := pgwire.AppendCommandComplete(nil, "DEALLOCATE")
			c.write(pgwire.AppendReady(answer, link.Status()))
			b.told = true
		} else if n.Name != "" {
			b.out = pgwire.AppendQuery(b.out, "DEALLOCATE "+n.Name)
		} else if poolersOwn(name) {
			b.keep(buf, off)
			b.from = off + size
			b.out = pgwire.AppendQuery(b.out, "DEALLOCATE "+nobodys(name))
		}
		return true
	}
	return false
}

// deallocates looks whether a Parse of the unnamed statement is nothing but DEALLOCATE with one name, and has the server
// drop what it knows by another. dealt says that the message is done with, waits that it is to be said again later.
func (c *client) deallocates(b *batch, buf []byte, off int, msg []byte) (dealt, waits bool) {
	if text := pgwire.HeaderSize + 1; len(msg) > longestDeallocate || len(msg) == text || msg[text]|0x20 != 'd' {
		return false, false
	}
	sql, rest, ok := pgwire.NextString(msg[pgwire.HeaderSize+1:])
	if !ok {
		return false, false
	}
	what, name := readDeallocate(sql)
	if what != deallocates {
		return false, false
	}
	if c.server.link.Unsure() {
		c.stalled = true
		return false, true
	}
	n := c.server.link.Drops(name, c.planned())
	if n.Name == "" {
		if !poolersOwn(name) {
			return false, false
		}
		c.server.link.SetUnnamed(pgwire.Parse)
		n.Name = nobodys(name)
	}
	b.keep(buf, off)
	b.from = off + len(msg)
	b.prepares(n)
	b.out = pgwire.AppendParse(b.out, "", "DEALLOCATE "+n.Name+"\x00"+string(rest))
	return true, false
}

// poolersOwn: a statement of this name is the pooler's, and this client has none that it calls so.
func poolersOwn(name string) bool { return strings.HasPrefix(name, session.StatementPrefix) }

// nobodys is such a name as no statement has it, quoted, so that PostgreSQL says what it says of unknown ones.
func nobodys(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + ` "` }

type deallocation uint8

const (
	nothing     deallocation = iota
	purges                   // all statements
	deallocates              // one
)

// readDeallocate reads a statement that is only DEALLOCATE or DISCARD ALL; anything else is nothing.
func readDeallocate(sql string) (deallocation, string) {
	sql = strings.TrimRight(sql, "; \t\r\n\f")
	verb, rest := word(sql)
	switch strings.ToUpper(verb) {
	case "DISCARD":
		if what, end := word(rest); strings.EqualFold(what, "ALL") && end == "" {
			return purges, ""
		}
	case "DEALLOCATE":
		what, end := word(rest)
		if strings.EqualFold(what, "PREPARE") && end != "" {
			what, end = word(end)
		}
		if end != "" || what == "" {
			return nothing, ""
		}
		if strings.EqualFold(what, "ALL") {
			return purges, ""
		}
		if quoted, ok := strings.CutPrefix(what, `"`); ok {
			return deallocates, strings.ReplaceAll(strings.TrimSuffix(quoted, `"`), `""`, `"`)
		}
		return deallocates, strings.ToLower(what)
	}
	return nothing, ""
}

// word cuts the first word off: letters, digits and _, or a quoted identifier.
func word(sql string) (first, rest string) {
	sql = strings.TrimLeft(sql, " \t\r\n\f")
	end := 0
	if strings.HasPrefix(sql, `"`) {
		for end = 1; end < len(sql); end++ {
			if sql[end] != '"' {
				continue
			}
			if end+1 == len(sql) || sql[end+1] != '"' {
				end++
				return sql[:end], strings.TrimLeft(sql[end:], " \t\r\n\f")
			}
			end++
		}
		return "", sql
	}
	for end < len(sql) && (sql[end] == '_' || sql[end] >= 0x80 || sql[end] == '$' && end > 0 ||
		'0' <= sql[end] && sql[end] <= '9' || 'a' <= sql[end]|0x20 && sql[end]|0x20 <= 'z') {
		end++
	}
	return sql[:end], strings.TrimLeft(sql[end:], " \t\r\n\f")
}
