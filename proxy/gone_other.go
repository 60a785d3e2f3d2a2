//go:build unix && !linux

package proxy

import "syscall"

// gone reports false: there is no portable way to query the state.
func gone(uintptr) bool { return false }

func readNow(fd uintptr, b []byte) (int, error) { return syscall.Read(int(fd), b) }

// nextNow leaves both to be seen by reading: urgent data is ordinary.
func nextNow(uintptr) (there, urgent bool) { return true, false }
