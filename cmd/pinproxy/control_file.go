package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	osuser "os/user"
	"strconv"
	"syscall"

	"pinproxy/netstack/host"
)

// controlSocket returns the path of the control socket: from --socket, or next to the state file.
func controlSocket(o options) (string, error) {
	if o.socket != "" {
		return o.socket, nil
	}
	namespace, err := host.Namespace()
	if err != nil {
		return "", err
	}
	return host.SocketFile(stateDir(), namespace), nil
}

// groupOf returns the number of a group, or -1 for "".
func groupOf(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if g, err := osuser.LookupGroup(name); err == nil {
		name = g.Gid
	}
	gid, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return -1, &usageError{fmt.Sprintf("--socket-group %s: there is no such group", name), "sudo groupadd --system " + quote(name)}
	}
	return int(gid), nil
}

// share also lets the group use the socket at path. The socket is given to the group before it is opened to it.
func share(path string, group int) error {
	if group < 0 {
		return nil
	}
	if err := os.Lchown(path, -1, group); err != nil {
		return fmt.Errorf("give %s to group %d: %w", path, group, cause(err))
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("open %s to group %d: %w", path, group, cause(err))
	}
	return nil
}

// listenControl listens on path. Only the same user and root may connect, until share lets a group do so. A socket that
// nobody listens on any more is replaced. Anything else at path stays and is an error.
func listenControl(ctx context.Context, path string) (net.Listener, func() error, error) {
	if _, err := removeStale(path); err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lc := net.ListenConfig{Control: onlyOwner}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, cause(err))
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would also remove another's socket
	mine, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, nil, fmt.Errorf("listen on %s: %w", path, cause(err))
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

func removeStale(path string) (removed bool, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, cause(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, errors.New("there is a file that is no socket")
	}
	c, err := net.DialTimeout("unix", path, glance)
	if err == nil {
		_ = c.Close()
		return false, errors.New("another process listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, cause(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, cause(err)
	}
	return true, nil
}

// cause removes the repetition of the call and its subject from an error: an errno is enough.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		var op *net.OpError
		if !errors.As(err, &op) {
			return err
		}
		err = op.Err
	}
}

// openControl opens the control socket if possible. Everything else works without it.
func openControl(ctx context.Context, o options, log *slog.Logger) (l net.Listener, path string, remove func() error) {
	path, err := controlSocket(o)
	if err == nil {
		l, remove, err = listenControl(ctx, path)
	}
	if err != nil {
		log.Warn("no control socket: check and status can't ask this pinproxy", "err", err.Error())
		return nil, "", nil
	}
	if err := share(path, o.socketGroup); err != nil {
		log.Warn("the control socket is for its user and root alone", "err", err.Error())
	}
	return l, path, remove
}
