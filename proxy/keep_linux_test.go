package proxy

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// plain is a Conn that can't tell when it can be read.
type plain struct{ Conn }

// An upstream connection is kept alive once nothing moves, whether or not its flow can sleep, and whatever is between
// the two. The options are those in keepAlive.
func TestKeepAlive(t *testing.T) {
	for _, c := range []struct {
		name   string
		wrap   bool // the upstream connection is inspected
		accept func() (app, ours Conn, err error)
	}{
		{"both directions can sleep", false, loopback},
		{"the way up can sleep", true, loopback},
		{"the way down can sleep", false, memory},
		{"none can sleep", true, memory},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			s := listen(t, "127.0.0.1:0")
			dialed := make(chan syscall.RawConn, 1)
			h := newHarness(t, Config{Wrap: func(_, _ netip.AddrPort, up Conn) Conn {
				dialed <- up.(*upstream).raw
				if c.wrap {
					return plain{up}
				}
				return up
			}}, fmt.Sprintf("*:*=%d busy=fail", freePort(t)))
			f := h.openWith(t, s.addr, c.accept)
			f.answered(t, "accept")
			up := s.next(t)
			raw := receive(t, dialed, "the upstream connection")
			eventually(t, "it is kept alive", func() bool {
				return optionsOf(t, raw) == [4]int{1, 60, 15, 8}
			})
			_ = up.Close()
			_ = f.app.Close()
			f.ended(t)
		})
	}
}

// optionsOf returns whether a socket is kept alive, after how many seconds, how often and how many times it is
// probed.
func optionsOf(t *testing.T, raw syscall.RawConn) (got [4]int) {
	t.Helper()
	if err := raw.Control(func(fd uintptr) {
		for i, o := range [4]option{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 0},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 0},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 0},
		} {
			var err error
			if got[i], err = unix.GetsockoptInt(int(fd), o.level, o.name); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Error(err)
	}
	return got
}
