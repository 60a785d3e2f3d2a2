//go:build !linux

package check

// mayMark returns false: marks exist only on Linux.
func mayMark() bool { return false }
