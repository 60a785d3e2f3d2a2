package proxy

import (
	"encoding/binary"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setOptions sets SO_REUSEADDR and the mark. SO_REUSEADDR lets one source port have many connections
// (inet_csk_bind_conflict). It must be set on every socket that uses the port.
func (s Sockets) setOptions(fd uintptr) error {
	if err := setsockoptNow(fd, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}); err != nil {
		return err
	}
	if s.Mark == 0 {
		return nil
	}
	return setsockoptNow(fd, option{unix.SOL_SOCKET, unix.SO_MARK, int(s.Mark)})
}

// sendOver makes the socket send through an interface. The option's value is in network byte order (ip(7)).
func sendOver(fd uintptr, network string, link int) error {
	index := int(binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, uint32(link))))
	if strings.HasSuffix(network, "6") {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF, index)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_UNICAST_IF, index)
}

// flushTimeout is how long a reset waits for written bytes to be acknowledged.
const flushTimeout = time.Second

// flush waits until the peer has acknowledged what was written to c, because a reset (SO_LINGER 0) discards what the
// kernel still holds. It does nothing for conns that are not sockets: netstack's do this themselves.
func flush(c Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	end := time.Now().Add(flushTimeout)
	for pause := 50 * time.Microsecond; unsent(raw) && time.Now().Before(end); pause = min(2*pause, 10*time.Millisecond) {
		time.Sleep(pause) // no event reports an empty send queue
	}
}

// unsent reports whether the kernel holds unacknowledged bytes on a connection that could still deliver them.
func unsent(raw syscall.RawConn) bool {
	var n int
	var err error
	over := false
	if cerr := raw.Control(func(fd uintptr) {
		n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		over = gone(fd)
	}); cerr != nil || err != nil {
		return false
	}
	return !over && n > 0
}

// gone reports whether the connection is over for the kernel: it was reset, it timed out, or both directions have
// ended.
func gone(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE
}
