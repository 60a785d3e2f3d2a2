//go:build !linux

package main

// mayMark returns false: marks exist only on Linux.
func mayMark() bool { return false }
