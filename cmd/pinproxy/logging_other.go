//go:build !linux

package main

import "io"

// toJournal returns false: only Linux has the journal.
func toJournal(io.Writer, string) bool { return false }
