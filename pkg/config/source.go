package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// dialect is the language of a file. It decides the defaults and how values are written.
type dialect uint8

const (
	dialectYAML dialect = iota // also environment and flags
	dialectINI
)

func (d dialect) of(l limits) limits {
	l.durable = d == dialectYAML
	return l
}

func dialectFor(file string) dialect {
	if strings.EqualFold(filepath.Ext(file), ".ini") {
		return dialectINI
	}
	return dialectYAML
}

// pair is a key and its text as some layer gave them.
type pair struct {
	key, text string
	list      bool // written as a YAML list; text joins its items by commas
	at        Origin
}

// entry is one item of databases, users or peers as a file gave it.
type entry struct {
	name  string
	at    Origin
	pairs []pair
}

// document is what a file says, before any of it is understood.
type document struct {
	settings                []pair
	databases, users, peers []entry
}

const (
	maxFileSize = 8 << 20 // also stops at endless devices
	maxDatabase = 63      // bytes, PostgreSQL's and PgBouncer's limit
	maxUser     = 127
)

// ReadFile is the usual way for Load to read files; it refuses more than any configuration needs.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("%s is larger than %d MiB", path, maxFileSize>>20)
	}
	return data, err
}
