package ping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"pinproxy/proxy/udp"
)

// session is how long an unused flow stays: RFC 5508, REQ-2, asks for 60 s.
const session = 60 * time.Second

// NewRelay returns a relay of echo requests over the sockets of dial, which is [Dial] or calls it. A nil log discards.
func NewRelay(dial udp.Dialer, log *slog.Logger) *udp.Relay {
	return udp.New(dial, log, udp.Timeouts{Unanswered: session, Answered: session})
}

// hint is for the person who sees that ping does not work.
const hint = `unprivileged ping is not allowed to this group: as root, sysctl -w net.ipv4.ping_group_range="0 2147483647"`

// Dial opens an ICMP or ICMPv6 socket for echo requests to dst, whose port is ignored. It does not wait. The error
// is EACCES if the host does not allow it, or prohibits the destination.
func Dial(_ context.Context, dst netip.AddrPort) (net.Conn, error) {
	c, err := open(dst.Addr().Unmap())
	if from := (*os.SyscallError)(nil); errors.As(err, &from) && from.Syscall == "socket" && errors.Is(err, syscall.EACCES) {
		err = fmt.Errorf("%w: %s", err, hint)
	}
	if err != nil {
		return nil, fmt.Errorf("open ping socket to %s: %w", dst.Addr(), err)
	}
	return c, nil
}
