package pgtest

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Exec runs SQL, one statement or several, as the superuser over a connection of its own.
func (s *Server) Exec(ctx context.Context, sql string) error {
	_, err := s.Query(ctx, sql)
	return err
}

// Query is Exec with rows, values as text and NULL as the empty string.
func (s *Server) Query(ctx context.Context, sql string) ([][]string, error) {
	return s.QueryIn(ctx, Database, sql)
}

// QueryIn is Query in another database.
func (s *Server) QueryIn(ctx context.Context, database, sql string) ([][]string, error) {
	socket := filepath.Join(s.SocketDir, ".s.PGSQL."+strconv.Itoa(s.Port))
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// An expired context ends whatever read is under way.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{
		"user": User, "database": database, "application_name": "pgtest",
	}})
	if _, err := collect(f); err != nil {
		return nil, err
	}
	f.Send(&pgproto3.Query{String: sql})
	rows, err := collect(f)
	if err != nil {
		return nil, fmt.Errorf("%w, in: %s", err, sql)
	}
	f.Send(&pgproto3.Terminate{})
	return rows, f.Flush()
}

// collect flushes and reads rows until the server is ready or reports an error.
func collect(f *pgproto3.Frontend) (rows [][]string, err error) {
	if err := f.Flush(); err != nil {
		return nil, err
	}
	for {
		m, err := f.Receive()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			row := make([]string, len(m.Values))
			for i, v := range m.Values {
				row[i] = string(v)
			}
			rows = append(rows, row)
		case *pgproto3.ErrorResponse:
			return nil, fmt.Errorf("%s: %s (SQLSTATE %s)", m.Severity, m.Message, m.Code)
		case *pgproto3.ReadyForQuery:
			return rows, nil
		}
	}
}
