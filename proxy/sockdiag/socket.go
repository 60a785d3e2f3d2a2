package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// State is the state of a TCP socket, with the kernel's numbers (include/net/tcp_states.h).
type State uint8

// The states that matter for the use of a port.
const (
	Established State = iota + 1
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Closed // has a port, and is neither connected nor listening
	CloseWait
	LastAck
	Listen
	Closing
)

var stateNames = [...]string{
	Established: "ESTABLISHED", SynSent: "SYN_SENT", SynReceived: "SYN_RECV", FinWait1: "FIN_WAIT1", FinWait2: "FIN_WAIT2",
	TimeWait: "TIME_WAIT", Closed: "CLOSED", CloseWait: "CLOSE_WAIT", LastAck: "LAST_ACK", Listen: "LISTEN", Closing: "CLOSING",
}

// String returns the state as ss and netstat write it.
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", s)
}

// Over reports whether our end has been closed. If no program has the socket any more, which Socket.Orphan tells, the
// kernel keeps it for a minute at most, for segments that may still arrive.
func (s State) Over() bool {
	switch s {
	case FinWait1, FinWait2, TimeWait, LastAck, Closing:
		return true
	}
	return false
}

// Socket is a TCP socket as it was when the kernel was asked.
type Socket struct {
	State  State
	Local  netip.AddrPort
	Remote netip.AddrPort // port 0: not connected
	UID    uint32         // of the user who created it
	Mark   uint32         // the firewall mark; also 0 without CAP_NET_ADMIN
	V6Only bool           // listens on, or is bound to, IPv6 addresses alone (IPV6_V6ONLY)
	// Left is how much longer the kernel keeps a TIME_WAIT, or a FIN_WAIT2 that no program has any more; 0 for all
	// others. The kernel's timer may be late by up to 4 s in a minute (kernel/time/timer.c).
	Left time.Duration

	inode  uint32 // 0: no program has it
	cookie [8]byte
}

// Orphan reports whether no program has the socket open.
func (s Socket) Orphan() bool { return s.inode == 0 }

// ID returns the kernel's number for the socket, which is unique until the next boot (sock_gen_cookie).
func (s Socket) ID() uint64 { return binary.NativeEndian.Uint64(s.cookie[:]) }

// Beside reports whether a socket for IPv6 alone (IPV6_V6ONLY), or one for IPv4, can be bound to the same port of addr
// in any case, because the two sockets' addresses have nothing in common (inet_rcv_saddr_equal).
func (s Socket) Beside(addr netip.Addr) bool {
	own := s.Local.Addr()
	switch {
	case own == netip.IPv6Unspecified() && !s.V6Only:
		return false // it has the port of IPv4 as well
	case own.Is4() != addr.Is4():
		return true
	}
	return own != addr && !own.IsUnspecified() && !addr.IsUnspecified()
}

// String says what the socket does: "listens on 0.0.0.0:63999".
func (s Socket) String() string {
	switch {
	case s.State == Listen:
		return fmt.Sprintf("listens on %s", s.Local)
	case s.Remote.Port() == 0:
		return fmt.Sprintf("is bound to %s", s.Local)
	case s.State == Established:
		return fmt.Sprintf("is connected from %s to %s", s.Local, s.Remote)
	}
	return fmt.Sprintf("has %s from %s to %s", s.State, s.Local, s.Remote)
}

// Process is a program that has a socket open.
type Process struct {
	PID  int
	Name string // up to 15 bytes of the name (comm, proc(5))
}

// String names the process: "nginx (pid 812)".
func (p Process) String() string { return fmt.Sprintf("%s (pid %d)", p.Name, p.PID) }

// Remedy says what helps whoever needs a port that the process has.
func (p Process) Remedy() string {
	if p.Name == "pinproxy" { // it runs a command: a network namespace has one for all of it
		return fmt.Sprintf("a range of source ports in the rule has one for each pinproxy; or wait for the command of pid %d", p.PID)
	}
	return fmt.Sprintf("end that program, or let it use another port: it is pid %d", p.PID)
}
