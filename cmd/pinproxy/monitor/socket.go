package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"pinproxy/cmd/pinproxy/terminal"
)

// Share also lets the group use the socket at path. The socket is given to the group before it is opened to it.
func Share(path string, group int) error {
	if group < 0 {
		return nil
	}
	if err := os.Lchown(path, -1, group); err != nil {
		return fmt.Errorf("give %s to group %d: %w", path, group, terminal.Cause(err))
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("open %s to group %d: %w", path, group, terminal.Cause(err))
	}
	return nil
}

// Listen listens on path. Only the same user and root may connect, until Share lets a group do so. A socket that
// nobody listens on any more is replaced. Anything else at path stays and is an error. The returned function removes the
// socket, if it is still this one.
func Listen(ctx context.Context, path string) (net.Listener, func() error, error) {
	if _, err := RemoveStale(path); err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lc := net.ListenConfig{Control: onlyOwner}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, terminal.Cause(err))
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would also remove another's socket
	mine, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, nil, fmt.Errorf("listen on %s: %w", path, terminal.Cause(err))
	}
	remove := func() error {
		// An inode number is soon reused, so the time is compared as well.
		if now, err := os.Lstat(path); err != nil || !os.SameFile(now, mine) || !now.ModTime().Equal(mine.ModTime()) {
			return nil // gone, or no longer ours
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove control socket: %w", err)
		}
		return nil
	}
	return l, remove, nil
}

// RemoveStale removes a socket that nobody listens on any more. Anything else at path is an error, and stays.
func RemoveStale(path string) (removed bool, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, terminal.Cause(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, errors.New("there is a file that is no socket")
	}
	c, err := net.DialTimeout("unix", path, controlRead)
	if err == nil {
		_ = c.Close()
		return false, errors.New("another process listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, terminal.Cause(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, terminal.Cause(err)
	}
	return true, nil
}
