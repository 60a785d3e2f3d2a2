//go:build !linux

package main

// mayMark returns false: marks exist only on Linux.
func mayMark() bool { return false }

// mayBindLow returns false: capabilities exist only on Linux.
func mayBindLow() bool { return false }
