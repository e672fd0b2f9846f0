// Package config turns a file, the environment and flags into one typed, validated, immutable Config.
//
// It refuses to guess: an unknown key, a wrong type or contradicting values end in a sentence each, all of them together,
// and no Config at all. It keeps no package state, watches no files, logs nothing and never prints a secret. It knows
// nothing of pools, sockets or Postgres: other packages get the small struct they need. It is the only importer of viper.
//
// Later wins: defaults, file, PGBERTH_* environment, flags. The file is YAML or, by the extension .ini, a pgbouncer.ini
// in PgBouncer's grammar; the two have their own sets of defaults, because a pgbouncer.ini relies on PgBouncer's. Every
// setting of PgBouncer is known; those without effect in this version are listed by Inert.
//
// Why not viper alone: it lower-cases map keys, so names of databases would not survive, it forgets line numbers, and it
// ignores unknown keys. So the files are read here and viper is given the flat settings to lay on top of each other.
package config
