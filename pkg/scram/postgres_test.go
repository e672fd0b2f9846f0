package scram_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgberth/pgberth/pkg/pgtest"
	"github.com/pgberth/pgberth/pkg/scram"
)

// login logs into a real server; client does the SCRAM part, password the md5 one.
func login(ctx context.Context, s *pgtest.Server, user, password string, client *scram.Client) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": user, "database": pgtest.Database}})
	for {
		if err := f.Flush(); err != nil {
			return err
		}
		m, err := f.Receive()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *pgproto3.AuthenticationMD5Password:
			f.Send(&pgproto3.PasswordMessage{Password: scram.MD5(user, password, m.Salt)})
		case *pgproto3.AuthenticationSASL:
			f.Send(&pgproto3.SASLInitialResponse{AuthMechanism: scram.Mechanism, Data: client.First()})
		case *pgproto3.AuthenticationSASLContinue:
			final, err := client.Challenge(m.Data)
			if err != nil {
				return err
			}
			f.Send(&pgproto3.SASLResponse{Data: final})
		case *pgproto3.AuthenticationSASLFinal:
			if err := client.Verify(m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return errors.New(m.Code)
		case *pgproto3.ReadyForQuery:
			return nil
		}
	}
}

func TestPostgreSQLAcceptsTheClient(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Auth: pgtest.SCRAM})
	for i, password := range []string{"pencil", "a b, c=d", "e\u0301\u2168", "I\u00adX", "\U0001f511", "\u0627\u0031", strings.Repeat("x", 500)} {
		user := fmt.Sprintf("user%d", i)
		if err := s.Exec(t.Context(), fmt.Sprintf("create role %s login password '%s'", user, password)); err != nil {
			t.Fatal(err)
		}
		client := scram.NewClient(password, []byte("client nonce 1"))
		if err := login(t.Context(), s, user, "", client); err != nil {
			t.Errorf("%+q: %v", password, err)
			continue
		}
		if err := login(t.Context(), s, user, "", scram.NewClientFromKeys(client.Keys(), []byte("client nonce 2"))); err != nil {
			t.Errorf("%+q, with the keys of the first login: %v", password, err)
		}
		if err := login(t.Context(), s, user, "", scram.NewClient(password+"?", []byte("client nonce 3"))); err == nil || err.Error() != "28P01" {
			t.Errorf("%+q: a wrong password gives %v", password, err)
		}
		if err := s.Exec(t.Context(), fmt.Sprintf("alter role %s password '%s'", user, password)); err != nil {
			t.Fatal(err)
		}
		if err := login(t.Context(), s, user, "", scram.NewClientFromKeys(client.Keys(), []byte("client nonce 4"))); !errors.Is(err, scram.ErrKeys) {
			t.Errorf("%+q: the same password with another salt gives %v", password, err)
		}
	}
}

func TestPostgreSQLAcceptsVerifiersMadeHere(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Auth: pgtest.SCRAM})
	v := scram.NewVerifier("pencil", []byte("a salt of ours"), 1234)
	if err := s.Exec(t.Context(), fmt.Sprintf("create role app login password '%s'", v)); err != nil {
		t.Fatal(err)
	}
	if err := login(t.Context(), s, "app", "", scram.NewClient("pencil", []byte("client nonce"))); err != nil {
		t.Error(err)
	}
}

func TestPostgreSQLAcceptsMD5(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Auth: pgtest.MD5})
	if err := login(t.Context(), s, pgtest.User, pgtest.Password, nil); err != nil {
		t.Error(err)
	}
	rows, err := s.Query(t.Context(), "select rolpassword from pg_authid where rolname = current_user")
	if err != nil {
		t.Fatal(err)
	}
	if err := login(t.Context(), s, pgtest.User, rows[0][0], nil); err != nil {
		t.Errorf("with the stored secret: %v", err)
	}
	if err := login(t.Context(), s, pgtest.User, "wrong", nil); err == nil || err.Error() != "28P01" {
		t.Errorf("a wrong password gives %v", err)
	}
}
