//go:build !linux

package main

import (
	"errors"
	"syscall"
)

// onlyOwner: the mode of a socket that is not bound yet is Linux's.
func onlyOwner(_, _ string, _ syscall.RawConn) error { return errors.ErrUnsupported }
