package drivers

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// crowd is how many clients log in at once.
const crowd = 5000

func TestFiveThousandClientsLogInAtOnce(t *testing.T) {
	raiseFiles(t, crowd+1000)
	server := pgtest.Shared(t)
	salt := []byte("0123456789abcdef")
	users := write(t, "userlist.txt", fmt.Sprintf("%q %q\n", "postgres", scram.NewVerifier("secret", salt, 4096)))
	for name, auth := range map[string][]string{
		"trust": {"auth_type: trust"},
		"SCRAM": {"auth_type: scram-sha-256", "auth_file: " + users},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, server, append(auth, "max_client_conn: 6000", "default_pool_size: 10", "log_connections: 0", "log_disconnections: 0", "listen_backlog: 4096")...)
			before, err := s.Memory()
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			var (
				wg    sync.WaitGroup
				conns = make([]net.Conn, crowd)
				errs  = make([]error, crowd)
			)
			for i := range crowd {
				wg.Go(func() { conns[i], errs[i] = login(fmt.Sprintf("127.0.0.1:%d", s.port)) })
			}
			wg.Wait()
			defer func() {
				for _, c := range conns {
					if c != nil {
						_ = c.Close()
					}
				}
			}()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			after, err := s.Memory()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d clients logged in within %v; memory grew by %d bytes each", crowd, time.Since(began).Round(time.Millisecond), (after.Now-before.Now)*1024/crowd)
			// All of them are served.
			for i := range 500 {
				wg.Go(func() { errs[i] = ask(conns[i*10]) })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func raiseFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < n {
		limit.Cur, limit.Max = n, max(n, limit.Max)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatalf("this test needs %d open files: %v", n, err)
		}
	}
}

// login logs in as postgres, by whatever the sidecar asks for.
func login(addr string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "postgres", "database": "app"}})
	proof := scram.NewClient("secret", []byte("a nonce of its own"))
	for {
		if err := f.Flush(); err != nil {
			return conn, err
		}
		m, err := f.Receive()
		if err != nil {
			return conn, err
		}
		switch m := m.(type) {
		case *pgproto3.AuthenticationSASL:
			f.Send(&pgproto3.SASLInitialResponse{AuthMechanism: scram.Mechanism, Data: proof.First()})
		case *pgproto3.AuthenticationSASLContinue:
			final, err := proof.Challenge(m.Data)
			if err != nil {
				return conn, err
			}
			f.Send(&pgproto3.SASLResponse{Data: final})
		case *pgproto3.AuthenticationSASLFinal:
			if err := proof.Verify(m.Data); err != nil {
				return conn, err
			}
		case *pgproto3.ErrorResponse:
			return conn, fmt.Errorf("refused: %s (%s)", m.Message, m.Code)
		case *pgproto3.ReadyForQuery:
			return conn, nil
		}
	}
}

func ask(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.Query{String: "select 1"})
	if err := f.Flush(); err != nil {
		return err
	}
	for {
		m, err := f.Receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("refused: %s (%s)", m.Message, m.Code)
		case *pgproto3.ReadyForQuery:
			return nil
		}
	}
}
