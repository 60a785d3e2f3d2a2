package proxy

import "golang.org/x/sys/unix"

// bound has the kernel keep no more than some bytes of what the upstream sends, or, 0, as many as it likes, as
// it does from the start: up to 6 MB a connection (tcp_rmem), and less for all others when that is too much for
// the host (tcp_mem). Where that can't be taken back, before Linux 5.14, it does nothing.
func (u *upstream) bound(bytes int) {
	_ = u.raw.Control(func(fd uintptr) {
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil {
			return
		}
		if bytes > 0 {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
			return
		}
		// It finds the size by itself again, once that is not locked any more.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	})
}
