package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the name of the abstract socket. The kernel scopes abstract sockets to the network namespace, and
// removes them with the process, however that ends.
const lockName = "@pinproxy"

// Lock is the right of one process to change a network namespace.
type Lock struct {
	listener net.Listener
	served   sync.WaitGroup
	control  atomic.Value // string: the argument of Announce
}

// Hold takes the lock of the calling thread's network namespace. The error is a *[HeldError] if another process
// holds it. Any user of the namespace can take the name; the error then says who did.
func Hold(ctx context.Context) (*Lock, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: lockName, Net: "unix"})
		if err == nil {
			l := &Lock{listener: listener}
			l.served.Go(l.serve)
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("take the lock: %w", err)
		}
		pid, err := holder()
		if err == nil {
			return nil, &HeldError{PID: pid}
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("ask who has the lock: %w", err)
		}
		// The holder ended between our two calls, or is not listening yet. Or it never will.
		if wait > time.Second {
			return nil, &HeldError{}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// Announce sets the control socket path that is given to everyone who asks for the holder from now on.
func (l *Lock) Announce(path string) { l.control.Store(path) }

// acceptPause is how long serve waits after an error. Release may have to wait as long.
const acceptPause = 50 * time.Millisecond

// serve accepts and closes each connection, so that the queue never fills. The announced path fits into the
// buffer of any socket, so writing it does not block.
func (l *Lock) serve() {
	for {
		c, err := l.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return // after Release
		}
		if err != nil { // no descriptor is free, as in a flood of connections: one will be
			time.Sleep(acceptPause)
			continue
		}
		if path, ok := l.control.Load().(string); ok {
			_, _ = c.Write([]byte(path))
		}
		c.Close()
	}
}

// Release releases the lock. Call it after everything is undone.
func (l *Lock) Release() error {
	err := l.listener.Close()
	l.served.Wait()
	return err
}

// holder returns the process that listens, or 0 if it is in another PID namespace or does not answer.
func holder() (pid int, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: lockName})
	if errors.Is(err, unix.EAGAIN) {
		return 0, nil // a holder exists but does not accept: stopped, or not a pinproxy
	}
	if err != nil {
		return 0, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}
