package pgtest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A conversation file is a dialogue with a server:
//
//	# What it shows, in a sentence.
//	setup: create table t (id int)     run before, over a connection of its own, in an empty schema public
//	session: true                      needs a backend of its own for as long as the client is connected
//	not sidecar: reason                this target does not hold the dialogue
//
//	client a application_name=x        connects and logs in; without such lines there is one client without a name
//	dial b                             connects and says nothing
//	a: send Query "select 1"           queues a message, see notation.go; other lines of a write what is queued
//	a: raw 51 00 00 00 04              queues any bytes
//	a: write                           writes what is queued
//	a: until ReadyForQuery 2           reads until the second one; also "until closed" and "until byte"
//	  RowDescription [?column?:int4]   what must have come, indented
//	differs sidecar: reason            what this target says instead of the lines above, indented too
//	  ErrorResponse …
//	a: parameters TimeZone             the values of ParameterStatus so far, indented below
//	a: cancel                          asks the server, over a connection of its own, to cancel what a runs
//	await "select count(*) = 1 from …" repeats a query, over a connection of its own, until it says true
//	a: halfclose                       closes the connection for writing
//	a: close                           closes the connection without Terminate
//
// Before a client's first ReadyForQuery its ParameterStatus messages are not shown. At the end each client says
// Terminate, and nothing unread may be left.
type conversation struct {
	path    string
	session bool
	clients int
	not     map[string]string // target: reason
	setup   []string
	steps   []step
	lines   []string // the file as it is, for rewriting
}

// targets are the names that differs and not may use.
var targets = []string{"postgres", "sidecar"}

// step is one line of the dialogue.
type step struct {
	line   int    // its index in the file
	client string // "" for the nameless one and for await
	verb   string
	arg    string
	bytes  []byte            // send and raw: what to write
	count  int               // until: how many
	params map[string]string // client and send Startup: on top of user and database

	expected block
	differs  map[string]block // by target
}

// block is a transcript in the file: the lines after start, without their indent.
type block struct {
	start int
	lines []string
}

const indent = "  "

// parseConversation reads a file. Its errors say which line.
func parseConversation(text string) (*conversation, error) {
	p := parser{conversation: conversation{not: map[string]string{}, lines: strings.Split(strings.TrimSuffix(text, "\n"), "\n")}}
	for p.at = 0; p.at < len(p.lines); p.at++ {
		if err := p.parseLine(p.lines[p.at]); err != nil {
			return nil, fmt.Errorf("line %d: %w", p.at+1, err)
		}
	}
	if err := p.finish(); err != nil {
		return nil, err
	}
	return &p.conversation, nil
}

type parser struct {
	conversation
	at      int // the line being parsed
	clients []string
}

func (p *parser) parseLine(line string) error {
	switch {
	case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		return nil
	case strings.HasPrefix(line, indent):
		return p.parseIndented(line[len(indent):])
	case line != strings.TrimSpace(line):
		return fmt.Errorf("expected lines are indented by two spaces, others by none and end without any")
	}
	head, rest, _ := strings.Cut(line, " ")
	switch head {
	case "setup:":
		return p.parseSetup(rest)
	case "session:":
		p.session = true
		if rest != "true" || len(p.steps) > 0 {
			return fmt.Errorf("session: true is said before the dialogue")
		}
		return nil
	case "not", "differs":
		return p.parseException(head, rest)
	case "client", "dial":
		return p.parseClient(head, rest)
	}
	s := step{line: p.at, expected: block{start: p.at}}
	if name, ok := strings.CutSuffix(head, ":"); ok {
		if !slices.Contains(p.clients, name) {
			return fmt.Errorf("there is no client %q; begin with: client %s", name, name)
		}
		s.client = name
		head, rest, _ = strings.Cut(rest, " ")
	}
	s.verb, s.arg = head, rest
	if s.client == "" && s.verb != "await" {
		if len(p.clients) == 0 {
			p.clients = []string{""}
		}
		if p.clients[0] != "" {
			return fmt.Errorf("whose line? Begin with a client's name and a colon")
		}
	}
	if err := s.parse(); err != nil {
		return err
	}
	p.steps = append(p.steps, s)
	return nil
}

func (p *parser) parseSetup(sql string) error {
	if len(p.steps) > 0 {
		return fmt.Errorf("setup comes before the dialogue")
	}
	if sql == "" {
		return fmt.Errorf("setup needs a statement")
	}
	p.setup = append(p.setup, sql)
	return nil
}

func (p *parser) parseIndented(line string) error {
	if len(p.steps) == 0 {
		return fmt.Errorf("an expected line follows nothing that reads")
	}
	s := &p.steps[len(p.steps)-1]
	if !s.reads() {
		return fmt.Errorf("an expected line follows %q, which reads nothing", s.verb)
	}
	// The last block that was begun gets it.
	last := &s.expected
	name := ""
	for target, b := range s.differs {
		if b.start > last.start {
			last, name = &b, target
		}
	}
	if last.start+len(last.lines)+1 != p.at {
		return fmt.Errorf("an expected line stands apart from its block")
	}
	last.lines = append(last.lines, line)
	if name != "" {
		s.differs[name] = *last
	}
	return nil
}

func (p *parser) parseException(kind, rest string) error {
	target, reason, _ := strings.Cut(rest, ":")
	reason = strings.TrimSpace(reason)
	if !slices.Contains(targets, target) || reason == "" {
		return fmt.Errorf("%s needs one of %s and a reason, as in: %s sidecar: it answers this itself", kind, strings.Join(targets, ", "), kind)
	}
	if kind == "not" {
		if len(p.steps) > 0 {
			return fmt.Errorf("not is said before the dialogue")
		}
		p.not[target] = reason
		return nil
	}
	if len(p.steps) == 0 || !p.steps[len(p.steps)-1].reads() {
		return fmt.Errorf("differs follows what it differs from")
	}
	s := &p.steps[len(p.steps)-1]
	if s.differs == nil {
		s.differs = map[string]block{}
	}
	s.differs[target] = block{start: p.at}
	return nil
}

func (p *parser) parseClient(verb, rest string) error {
	n, err := parseNote(rest)
	if err != nil {
		return err
	}
	switch {
	case slices.Contains(p.clients, n.name):
		return fmt.Errorf("client %s is there already", n.name)
	case slices.Contains(p.clients, ""):
		return fmt.Errorf("clients are named before any line without a name")
	case len(n.values) > 0 || verb == "dial" && len(n.fields) > 0:
		return fmt.Errorf("expected is: client NAME parameter=value, or: dial NAME")
	}
	p.clients = append(p.clients, n.name)
	p.steps = append(p.steps, step{line: p.at, client: n.name, verb: verb, params: n.texts()})
	return nil
}

// finish looks for what a file must have.
func (p *parser) finish() error {
	if len(p.lines) == 0 || !strings.HasPrefix(p.lines[0], "# ") {
		return fmt.Errorf("line 1: the file begins with a comment that says what the dialogue shows")
	}
	read := map[string]bool{}
	for _, s := range p.steps {
		read[s.client] = read[s.client] || s.reads()
	}
	p.conversation.clients = len(p.clients)
	for _, name := range p.clients {
		if !read[name] {
			return fmt.Errorf("client %q never reads: the dialogue proves nothing about it", name)
		}
	}
	if len(p.clients) == 0 {
		return fmt.Errorf("there is no dialogue")
	}
	return nil
}

// reads tells whether a step has a transcript.
func (s *step) reads() bool { return s.verb == "until" || s.verb == "parameters" }

func (s *step) parse() (err error) {
	switch s.verb {
	case "send":
		n, err := parseNote(s.arg)
		if err != nil {
			return err
		}
		if n.name == "Startup" && len(n.values) == 0 {
			s.params = n.texts()
			return nil
		}
		s.bytes, err = encodeNote(n)
		return err
	case "raw":
		s.bytes, err = hex.DecodeString(strings.ReplaceAll(s.arg, " ", ""))
		if err == nil && len(s.bytes) == 0 {
			return fmt.Errorf("raw needs bytes in hexadecimal")
		}
		return err
	case "until":
		what, count, counted := strings.Cut(s.arg, " ")
		s.arg, s.count = what, 1
		if counted {
			if s.count, err = strconv.Atoi(count); err != nil || s.count < 1 {
				return fmt.Errorf("until reads to the first or n-th message, not the %q", count)
			}
		}
		if !slices.Contains(untils, what) {
			return fmt.Errorf("until %s never ends; it may be one of %s", what, strings.Join(untils, ", "))
		}
		return nil
	case "await":
		sc := scanner{rest: s.arg}
		v, err := sc.value()
		if err != nil || sc.rest != "" || !strings.HasPrefix(s.arg, `"`) {
			return fmt.Errorf("await needs a query in quotes")
		}
		s.arg = v.text()
		return nil
	case "parameters":
		if s.arg == "" {
			return fmt.Errorf("parameters needs names")
		}
		return nil
	case "write", "cancel", "close", "halfclose":
		if s.arg != "" {
			return fmt.Errorf("%s stands alone", s.verb)
		}
		return nil
	}
	return fmt.Errorf("there is no %q; the verbs are listed at the top of conversation.go", s.verb)
}

// untils are what one can wait for: messages and two other events.
var untils = []string{
	"closed", "byte", "ReadyForQuery", "ErrorResponse", "NoticeResponse", "NotificationResponse", "ParameterStatus", "ParseComplete",
	"BindComplete", "CloseComplete", "CommandComplete", "EmptyQueryResponse", "PortalSuspended", "RowDescription", "NoData",
	"ParameterDescription", "DataRow", "CopyInResponse", "CopyOutResponse", "CopyData", "CopyDone", "FunctionCallResponse",
	"AuthenticationOk", "AuthenticationCleartextPassword", "BackendKeyData", "NegotiateProtocolVersion",
}

// expectation is what a target must say in a step.
func (s *step) expectation(target string) block {
	if b, ok := s.differs[target]; ok {
		return b
	}
	return s.expected
}

// rewrite is the file with new transcripts, by step.
func (c *conversation) rewrite(target string, transcripts map[int][]string) string {
	lines := slices.Clone(c.lines)
	for i := len(c.steps) - 1; i >= 0; i-- {
		got, ran := transcripts[i]
		if !ran {
			continue
		}
		b := c.steps[i].expectation(target)
		var fresh []string
		for _, l := range got {
			fresh = append(fresh, indent+l)
		}
		lines = slices.Replace(lines, b.start+1, b.start+1+len(b.lines), fresh...)
	}
	return strings.Join(lines, "\n") + "\n"
}
