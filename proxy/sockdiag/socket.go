package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// State is a TCP socket's state, as the kernel numbers them
// (include/net/tcp_states.h).
type State uint8

// The states that matter for who may use a port.
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

// String is the state as ss and netstat write it.
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", s)
}

// Over says that no program has the connection any more: the kernel keeps it for a
// minute at most, for the sake of segments that may still come.
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
	UID    uint32         // of the user who made it
	Mark   uint32         // the firewall mark; 0 without CAP_NET_ADMIN, too
	// Left is how much longer the kernel keeps a TIME_WAIT, or a FIN_WAIT2 that
	// no program has any more; 0 for all others. The kernel's timer may be late,
	// by up to 4 s in a minute (kernel/time/timer.c).
	Left time.Duration

	inode  uint32 // 0: no program has it
	cookie [8]byte
}

// Orphan says that no program has the socket open.
func (s Socket) Orphan() bool { return s.inode == 0 }

// ID is the kernel's number of the socket, which no other has until the next boot (sock_gen_cookie).
func (s Socket) ID() uint64 { return binary.NativeEndian.Uint64(s.cookie[:]) }

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
	Name string // up to 15 bytes of it (comm, proc(5))
}

// String names it: "nginx (pid 812)".
func (p Process) String() string { return fmt.Sprintf("%s (pid %d)", p.Name, p.PID) }
