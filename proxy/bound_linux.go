package proxy

import "golang.org/x/sys/unix"

// bound makes the kernel keep at most this many bytes of what the upstream sends. 0 lets it keep as many as it likes
// again, as at the start: up to 6 MB per connection (tcp_rmem), and less for all others when that is too much for the
// host (tcp_mem). Before Linux 5.14 a bound can't be removed again, so bound does nothing there.
func (u *upstream) bound(bytes int) {
	_ = u.raw.Control(func(fd uintptr) {
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil {
			return
		}
		if bytes > 0 {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
			return
		}
		// Once the size is no longer locked, the kernel finds it by itself again.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	})
}
