package proxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// keepOptions are the options for the variable keepAlive.
var keepOptions = [...]option{
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle / time.Second)},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval / time.Second)},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
}

// keepAlive implements keeper. The first probe comes after keepAlive.Idle, at most a second later than if the option
// had been set from the beginning.
func (u *upstream) keepAlive() {
	_ = u.raw.Control(func(fd uintptr) {
		for _, o := range keepOptions {
			_ = setsockoptNow(fd, o)
		}
	})
}
