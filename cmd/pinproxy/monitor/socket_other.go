//go:build !linux

package monitor

import (
	"errors"
	"syscall"
)

// onlyOwner is unsupported: only Linux lets us set the mode of a socket that is not bound yet.
func onlyOwner(_, _ string, _ syscall.RawConn) error { return errors.ErrUnsupported }
