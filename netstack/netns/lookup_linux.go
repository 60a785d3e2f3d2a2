package netns

import (
	"errors"

	"golang.org/x/sys/unix"
)

// mayExecute asks the kernel, which takes capabilities, ACLs and noexec into account.
func mayExecute(file string) error {
	err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
	if err == nil || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return &ExecError{file, err}
}
