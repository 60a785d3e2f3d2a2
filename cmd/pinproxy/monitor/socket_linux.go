package monitor

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// onlyOwner sets a socket's mode before it is bound. The file then has that mode from the first moment
// (unix_bind_bsd).
func onlyOwner(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}
