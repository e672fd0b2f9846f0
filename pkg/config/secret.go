package config

import (
	"log/slog"
	"reflect"
)

// Secret is text that no formatting verb, encoder or logger shows; only Reveal gives it away. It holds a pointer so that
// even printing a struct with an unexported Secret inside, where fmt does not call String, shows an address and no text.
type Secret struct{ text *string }

var secretType = reflect.TypeFor[Secret]()

const mask = "******"

// NewSecret wraps text; empty text is the zero Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Set tells whether there is a secret.
func (s Secret) Set() bool { return s.text != nil }

// Reveal returns the text, "" when there is none.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Equal compares the texts.
func (s Secret) Equal(t Secret) bool { return s.Reveal() == t.Reveal() }

// String masks the text; it is empty when there is none.
func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return mask
}

// GoString masks the text in %#v.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// MarshalText masks the text in JSON and its like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks the text in slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
