package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/pgberth/pgberth/pkg/scram"
)

// client speaks just enough of PostgreSQL's protocol to log in and to run a query, at little cost, so that what is
// measured is the other side. It trusts its peer and gives up at the first surprise.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	buf  []byte
}

// login connects and logs in; keys are only used when a password is asked for.
func login(ctx context.Context, port int, user string, keys scram.Keys, bufferSize int) (*client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			conn.Close()
			return nil, err
		}
	}
	c := &client{conn: conn, in: bufio.NewReaderSize(conn, bufferSize)}
	if err := c.handshake(user, keys); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *client) handshake(user string, keys scram.Keys) error {
	startup := binary.BigEndian.AppendUint32(nil, 0)
	startup = binary.BigEndian.AppendUint32(startup, 3<<16)
	startup = fmt.Appendf(startup, "user\x00%s\x00database\x00%s\x00\x00", user, database)
	binary.BigEndian.PutUint32(startup, uint32(len(startup)))
	if _, err := c.conn.Write(startup); err != nil {
		return err
	}
	var proof *scram.Client
	for {
		kind, body, err := c.read()
		if err != nil {
			return err
		}
		switch kind {
		case 'Z':
			return nil
		case 'R':
			if proof, err = c.authenticate(proof, keys, body); err != nil {
				return err
			}
		}
	}
}

func (c *client) authenticate(proof *scram.Client, keys scram.Keys, body []byte) (*scram.Client, error) {
	if len(body) < 4 {
		return nil, errors.New("authentication request too short")
	}
	switch request, data := binary.BigEndian.Uint32(body), body[4:]; request {
	case 0:
		return nil, nil
	case 10:
		nonce := make([]byte, 18)
		rand.Read(nonce)
		proof = scram.NewClientFromKeys(keys, nonce)
		first := proof.First()
		message := append([]byte(scram.Mechanism), 0)
		message = binary.BigEndian.AppendUint32(message, uint32(len(first)))
		return proof, c.write('p', append(message, first...))
	case 11:
		if proof == nil {
			return nil, errors.New("SCRAM challenge before its request")
		}
		final, err := proof.Challenge(data)
		if err != nil {
			return nil, err
		}
		return proof, c.write('p', final)
	case 12:
		if proof == nil {
			return nil, errors.New("SCRAM signature before its request")
		}
		return proof, proof.Verify(data)
	default:
		return nil, fmt.Errorf("unexpected authentication request %d", request)
	}
}

// query sends a simple query and reads its result to the end; it returns how many bytes came.
func (c *client) query(sql string) (int64, error) {
	if err := c.write('Q', append([]byte(sql), 0)); err != nil {
		return 0, err
	}
	var size int64
	for {
		header, err := c.in.Peek(5)
		if err != nil {
			return size, err
		}
		kind, length := header[0], int64(binary.BigEndian.Uint32(header[1:]))
		size += 1 + length
		if kind == 'E' {
			_, _, err := c.read()
			return size, err
		}
		if _, err := c.in.Discard(int(1 + length)); err != nil {
			return size, err
		}
		if kind == 'Z' {
			return size, nil
		}
	}
}

func (c *client) close() {
	_ = c.write('X', nil)
	c.conn.Close()
}

func (c *client) write(kind byte, body []byte) error {
	c.buf = append(c.buf[:0], kind)
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(4+len(body)))
	_, err := c.conn.Write(append(c.buf, body...))
	return err
}

// read returns one message; an error message becomes an error.
func (c *client) read() (kind byte, body []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(c.in, header[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length < 4 || length > 1<<20 {
		return 0, nil, fmt.Errorf("message %q has length %d", header[0], length)
	}
	body = make([]byte, length-4)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return 0, nil, err
	}
	if header[0] == 'E' {
		return 0, nil, fmt.Errorf("the server said %q", body)
	}
	return header[0], body, nil
}

// credentials makes up a password and returns its verifier and, by proving it to ourselves once, its keys.
func credentials() (verifier string, keys scram.Keys, err error) {
	random := make([]byte, 34)
	rand.Read(random)
	password := rand.Text()
	v := scram.NewVerifier(password, random[:16], 4096)
	ours, theirs := scram.NewClient(password, random[16:]), scram.NewServer(v, random[:18])
	message, err := theirs.First(ours.First())
	if err == nil {
		message, err = ours.Challenge(message)
	}
	if err == nil {
		message, err = theirs.Final(message)
	}
	if err == nil {
		err = ours.Verify(message)
	}
	if err != nil {
		return "", scram.Keys{}, err
	}
	return v.String(), ours.Keys(), nil
}

// waitLimit bounds every single login and query.
const waitLimit = 30 * time.Second
