//go:build !linux

package main

// mayMark: marks are Linux's.
func mayMark() bool { return false }
