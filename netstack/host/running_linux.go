package host

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// askTimeout is how long the lock's holder may take to report its control socket. It takes microseconds, unless
// the holder is stopped or is not a pinproxy.
const askTimeout = time.Second

// longestPath is the maximum length of a socket path (struct sockaddr_un).
const longestPath = 108

// FindRunning finds the pinproxy of the calling thread's network namespace by its lock; ok is false if there is
// none. No privilege is needed. Any user of the namespace may have taken the lock's name, so trust the reported
// path no further than for a look.
func FindRunning() (r Running, ok bool, err error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: lockName, Net: "unix"})
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return Running{}, false, nil
	case errors.Is(err, unix.EAGAIN):
		return Running{Silent: true}, true, nil // its queue is full
	case err != nil:
		return Running{}, false, fmt.Errorf("ask who has the lock: %w", err)
	}
	defer c.Close()
	if r.PID, err = peer(c); err != nil {
		return r, true, fmt.Errorf("ask who has the lock: %w", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(askTimeout))
	path, err := io.ReadAll(io.LimitReader(c, longestPath))
	if err != nil {
		r.Silent = true
		return r, true, nil
	}
	r.Socket = string(path)
	return r, true, nil
}

// peer returns the process at the other end of c.
func peer(c syscall.Conn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
