package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pgberth/pgberth/pkg/scram"
)

const (
	// verifierIterations and verifierSalt are PostgreSQL's own defaults.
	verifierIterations = 4096
	verifierSalt       = 16
	// longestPassword is what a client may send, in bytes.
	longestPassword = 4096
)

// printVerifier writes the user list's line for a user whose password comes from a terminal or another program: on a
// command line everybody could read it.
func printVerifier(args []string, in *os.File, out, prompt io.Writer) error {
	if len(args) != 1 || args[0] == "" {
		return errors.New("scram takes one argument, the user; the password is asked for, or read from standard input")
	}
	password, err := readPassword(args[0], in, prompt)
	if err != nil {
		return err
	}
	salt := make([]byte, verifierSalt)
	if _, err := rand.Read(salt); err != nil {
		return err
	}
	quoted := `"` + strings.ReplaceAll(args[0], `"`, `""`) + `"`
	_, err = fmt.Fprintf(out, "%s \"%s\"\n", quoted, scram.NewVerifier(password, salt, verifierIterations))
	return err
}

// readPassword reads a line; at a terminal it asks, twice, and shows nothing.
func readPassword(user string, in *os.File, prompt io.Writer) (string, error) {
	lines := bufio.NewReader(io.LimitReader(in, 2*(longestPassword+2)))
	state, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil { // no terminal
		return passwordLine(lines)
	}
	silent := *state
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &silent); err != nil {
		return "", fmt.Errorf("cannot hide what is typed: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, state) }()
	_, _ = fmt.Fprintf(prompt, "Password of %s: ", user)
	first, err := passwordLine(lines)
	if err != nil {
		return "", err
	}
	_, _ = fmt.Fprint(prompt, "\nAgain: ")
	second, err := passwordLine(lines)
	_, _ = fmt.Fprintln(prompt)
	if err == nil && first != second {
		err = errors.New("the two passwords differ")
	}
	return first, err
}

func passwordLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case line == "":
		return "", errors.New("the password is empty")
	case len(line) > longestPassword:
		return "", fmt.Errorf("the password has %d bytes or more, allowed are %d", len(line), longestPassword)
	case strings.IndexByte(line, 0) >= 0:
		return "", errors.New("the password contains a zero byte")
	}
	return line, nil
}
