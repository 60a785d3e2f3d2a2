package proxy

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/proxy/sockdiag"
)

// Where SOCK_DESTROY can't end a TIME_WAIT, a reset can: one whose sequence number is the very next that the socket
// expects (tcp_timewait_state_process; TIME-WAIT assassination, RFC 1337). The peer would send such a reset in answer
// to a late segment. We make it with a socket of our own that has the peer's address (IP_TRANSPARENT) and is connected
// without a handshake (TCP_REPAIR). Its packets do not leave this host, because they are for one of its addresses. The
// sequence number is known only for connections of this process, and only while their socket exists. So it is noted
// when they are closed.

// Endings remembers how connections from pins ended, as far as it takes to end their TIME_WAIT by a reset. It keeps 170
// bytes at most for each, of the last minute or two, of 32,768 at most. Its methods may be called from any goroutine,
// and on a nil Endings, which remembers nothing.
type Endings struct {
	mu            sync.Mutex
	recent, older map[tuple]uint32
	since         time.Time // when recent was begun
}

// tuple is a 4-tuple, as seen from this host.
type tuple struct{ local, remote netip.AddrPort }

const (
	// timeWait is how long the kernel keeps a TIME_WAIT (TCP_TIMEWAIT_LEN).
	timeWait = time.Minute
	// manyEndings is how many are remembered before older ones are forgotten.
	manyEndings = 16384
)

// NewEndings returns what a Sockets needs on this kernel to end a TIME_WAIT: nil where sock_diag can do so.
func NewEndings() *Endings {
	if sockdiag.EndsTimeWait() {
		return nil
	}
	return new(Endings)
}

// note remembers how the connection of a socket that is about to be closed has ended, unless connect gets past its
// TIME_WAIT without help: if the peer has used TCP timestamps. It does nothing for connections that are not over. It
// needs CAP_NET_ADMIN.
func (e *Endings) note(fd uintptr, local, remote netip.AddrPort) {
	if e == nil {
		return
	}
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.Options&timestamps != 0 {
		return
	}
	switch info.State {
	case unix.BPF_TCP_CLOSE: // if we were first, the kernel has put a TIME_WAIT in the socket's place
	case unix.BPF_TCP_CLOSING: // it will do so when the peer acknowledges our FIN
	default:
		return
	}
	next, err := expected(fd)
	if err != nil {
		return
	}
	e.remember(tuple{local, remote}, next, time.Now())
}

func (e *Endings) remember(t tuple, next uint32, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.recent == nil || len(e.recent) >= manyEndings || now.Sub(e.since) > timeWait {
		e.recent, e.older, e.since = make(map[tuple]uint32), e.recent, now
	}
	e.recent[t] = next
}

// take returns what is remembered, and forgets it.
func (e *Endings) take(t tuple) (next uint32, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if next, known = e.recent[t]; !known {
		next, known = e.older[t]
	}
	delete(e.recent, t)
	delete(e.older, t)
	return next, known
}

// timestamps is the bit TCPI_OPT_TIMESTAMPS of tcp_info.tcpi_options.
const timestamps = 1

// expected returns the next sequence number that the socket expects from its peer. The peer's FIN has come.
func expected(fd uintptr) (uint32, error) {
	if err := setsockoptNow(fd, option{unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON}); err != nil {
		return 0, err
	}
	// In the states that note accepts, leaving the mode sends nothing (tcp_send_window_probe). It clears SO_REUSEADDR,
	// without which a socket that is not quite over would bar the port to all others.
	defer func() {
		_ = setsockoptNow(fd, option{unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF})
		_ = setsockoptNow(fd, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	}()
	if err := setsockoptNow(fd, option{unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, recvQueue}); err != nil {
		return 0, err
	}
	next, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	return uint32(next), err
}

// The queues of TCP_REPAIR_QUEUE (include/uapi/linux/tcp.h).
const (
	recvQueue = 1 // TCP_RECV_QUEUE
	sendQueue = 2 // TCP_SEND_QUEUE
)

// end ends a TIME_WAIT by a reset, if its connection is remembered, and reports whether it is gone.
// net.ipv4.tcp_rfc1337 makes the kernel ignore that reset. mark is set on the socket that sends it.
func (e *Endings) end(s sockdiag.Socket, mark uint32) bool {
	if e == nil || s.State != sockdiag.TimeWait {
		return false
	}
	next, known := e.take(tuple{s.Local, s.Remote})
	if !known || resetAs(s.Remote, s.Local, next, mark) != nil {
		return false
	}
	_, found, err := sockdiag.Find(s.Local, s.Remote)
	return err == nil && !found
}

// resetAs sends a reset to an address of this host, as if it came from peer. It needs CAP_NET_ADMIN, and
// CAP_NET_BIND_SERVICE for a low port of the peer's.
func resetAs(peer, local netip.AddrPort, seq uint32, mark uint32) error {
	from, to := sockaddrOf(peer), sockaddrOf(local)
	fd, err := unix.Socket(to.family(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	foreign := option{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1}
	if to.family() == unix.AF_INET6 {
		foreign = option{unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1}
	}
	for _, o := range [...]option{
		foreign,
		{unix.SOL_SOCKET, unix.SO_MARK, int(mark)},
		{unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON}, // bind then overlooks who else has the port here
		{unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, sendQueue},
		{unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, int(seq)},
	} {
		if err := setsockoptNow(uintptr(fd), o); err != nil {
			return err
		}
	}
	if err := bindNow(uintptr(fd), from); err != nil {
		return err
	}
	if errno := connectNow(uintptr(fd), to); errno != 0 {
		return failure("connect", errno)
	}
	// Leaving the mode with TCP_REPAIR_OFF would send an ACK first, which the TIME_WAIT would answer to the real peer.
	if err := setsockoptNow(uintptr(fd), option{unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP}); err != nil {
		return err
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // close resets
}
