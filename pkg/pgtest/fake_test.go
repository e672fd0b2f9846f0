package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func connect(t *testing.T, f *Fake) (*pgconn.PgConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := pgconn.Connect(ctx, fmt.Sprintf("postgres://app:secret@%s/app?sslmode=disable", f.Addr()))
	if c != nil {
		t.Cleanup(func() { c.Close(context.WithoutCancel(t.Context())) })
	}
	return c, err
}

func TestADriverLogsIntoAFakeAndGetsItsAnswers(t *testing.T) {
	CheckLeaks(t)
	f := NewFake(t, func(c *FakeConn) {
		if p := c.Login(); p["user"] != "app" || p["database"] != "app" {
			t.Errorf("startup parameters are %v", p)
		}
		for {
			c.Answer("you asked: " + c.Query())
		}
	})
	c, err := connect(t, f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Exec(t.Context(), "select 1").ReadAll()
	if err != nil || string(got[0].Rows[0][0]) != "you asked: select 1" {
		t.Fatalf("got %v, %v", got, err)
	}
	f.AwaitOpen(t, 1)
	if f.Accepted() != 1 || f.Open() != 1 {
		t.Errorf("%d accepted, %d open", f.Accepted(), f.Open())
	}
	c.Close(t.Context())
	f.AwaitOpen(t, 0)
}

func TestAFakeRefusesEncryption(t *testing.T) {
	CheckLeaks(t)
	f := NewFake(t, func(c *FakeConn) { c.Login() })
	c, err := net.Dial("tcp", f.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "\x00\x00\x00\x08\x04\xd2\x16\x2f\x00\x00\x00\x08\x04\xd2\x16\x30\x00\x00\x00\x10\x00\x03\x00\x00user\x00a\x00\x00")
	got, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(got), "NNR") {
		t.Errorf("got %q", got)
	}
}

func TestAFakeAsksForPasswords(t *testing.T) {
	CheckLeaks(t)
	f := NewFake(t, func(c *FakeConn) {
		c.Startup()
		if got := c.AskPassword(); got != "secret" {
			t.Errorf("password is %q", got)
		}
		if got := c.AskMD5([4]byte{1, 2, 3, 4}); !strings.HasPrefix(got, "md5") {
			t.Errorf("md5 response is %q", got)
		}
		mechanism, first := c.AskSASL("SCRAM-SHA-256")
		_, nonce, _ := strings.Cut(string(first), ",r=")
		if mechanism != "SCRAM-SHA-256" || nonce == "" {
			t.Errorf("client chose %q and said %q", mechanism, first)
		}
		if got := c.ContinueSASL([]byte("r=" + nonce + "x,s=QQ==,i=1")); !strings.Contains(string(got), ",p=") {
			t.Errorf("client answered %q", got)
		}
		c.FinishSASL([]byte("v=nonsense"))
		c.AwaitEnd()
	})
	if _, err := connect(t, f); err == nil {
		t.Error("the client took a nonsense signature")
	}
}

func TestAFakeClosesAtAnyByte(t *testing.T) {
	CheckLeaks(t)
	var cut int
	f := NewFake(t, func(c *FakeConn) {
		c.Startup()
		c.CloseAfter(cut)
		c.Welcome()
		t.Error("the connection outlived its limit")
	})
	for _, cut = range []int{0, 1, 8, 9, 10, 100} {
		c, err := net.Dial("tcp", f.Addr())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "\x00\x00\x00\x10\x00\x03\x00\x00user\x00a\x00\x00")
		got, _ := io.ReadAll(c)
		c.Close()
		if len(got) != cut {
			t.Errorf("got %d bytes, want %d: %q", len(got), cut, got)
		}
	}
}

func TestAFakeSendsAnyFrameSlowly(t *testing.T) {
	CheckLeaks(t)
	f := NewFake(t, func(c *FakeConn) {
		c.Drip(time.Millisecond)
		c.Frame('E', -1, []byte("x"))
		c.Reset()
	})
	c, err := net.Dial("tcp", f.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "E\xff\xff\xff\xffx" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Read(got); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a reset reads as %v", err)
	}
}

func TestClosingAFakeEndsServersThatNeverAnswer(t *testing.T) {
	CheckLeaks(t)
	f := NewFake(t, (*FakeConn).AwaitEnd)
	c, err := net.Dial("tcp", f.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.AwaitAccepted(t, 1)
	f.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives")
	}
}
