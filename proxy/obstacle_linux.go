package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/proxy/sockdiag"
)

// A 4-tuple that we closed first stays in TIME_WAIT for 60 s. connect takes it over at once if the peer used TCP
// timestamps (tcp_twsk_unique). If it did not, as through old firewalls, connect fails with EADDRNOTAVAIL. sock_diag
// can remove exactly that state: SOCK_DESTROY (tcp_abort), with CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY, since
// Linux 6.1. For other kernels there are Endings.
//
// TIME_WAIT keeps late duplicates of the old connection away from a new one (RFC 9293, section 3.6.1). Linux's
// initial sequence numbers grow with time (secure_tcp_seq). So an old segment falls outside the new window unless the
// old connection outran that clock. That is the price of having only one port.

// makeRoom frees the 4-tuple that connect found in use, if only a TIME_WAIT holds it, and reports whether it did. It
// looks first, because the same request would end a living connection, even another process's.
func (s Sockets) makeRoom(pin, dst netip.AddrPort) (bool, error) {
	addr := pin.Addr()
	if addr.IsUnspecified() {
		var err error
		if addr, err = sockdiag.Source(pin.Port(), dst, s.Mark); err != nil {
			return false, err
		}
	}
	socket, found, err := sockdiag.Find(netip.AddrPortFrom(addr, pin.Port()), dst)
	if err != nil || !found || socket.State != sockdiag.TimeWait {
		return false, err
	}
	return true, s.destroy(socket)
}

// destroy ends a connection that is over.
func (s Sockets) destroy(socket sockdiag.Socket) error {
	if s.Endings.end(socket, s.Mark) {
		return nil
	}
	return sockdiag.Destroy(socket)
}

// Marked reports whether the socket of a 4-tuple has our mark, and whether there is such a socket.
func (s Sockets) Marked(local, remote netip.AddrPort) (ours, known bool) {
	if s.Mark == 0 {
		return false, false
	}
	socket, found, err := sockdiag.Find(local, remote)
	known = err == nil && found
	return known && socket.Mark == s.Mark, known
}

// Obstacle says what keeps bind or connect from using pin. Connections that are over, of programs that did not set
// SO_REUSEADDR, block the port for everyone for a minute (inet_csk_bind_conflict). If nothing else blocks it,
// Obstacle ends them.
func (s Sockets) Obstacle(pin, dst netip.AddrPort) Obstacle {
	list, err := sockdiag.OnPort(pin.Port())
	if err != nil {
		return Obstacle{}
	}
	addr := pin.Addr()
	if addr.IsUnspecified() { // the dial has also tried the address that it would leave from
		if from, err := sockdiag.Source(pin.Port(), dst, s.Mark); err == nil {
			addr = from
		}
	}
	var living, over []sockdiag.Socket
	for _, socket := range list {
		switch {
		case socket.Beside(addr):
		case !socket.State.Over() || !socket.Orphan():
			living = append(living, socket)
		case on(socket, pin, dst):
			return s.ended([]sockdiag.Socket{socket}) // this is the one that made connect fail
		default:
			over = append(over, socket)
		}
	}
	if o := s.foreign(living, pin, dst); o.Cause != "" {
		return o
	}
	return s.ended(over)
}

// on reports whether the socket has the 4-tuple.
func on(socket sockdiag.Socket, pin, dst netip.AddrPort) bool {
	return socket.Remote == dst && (pin.Addr().IsUnspecified() || pin.Addr() == socket.Local.Addr())
}

// foreign names the program that holds the port. The first of these found counts: the very 4-tuple, a listener, any
// other socket.
func (s Sockets) foreign(list []sockdiag.Socket, pin, dst netip.AddrPort) Obstacle {
	find := s.Owners
	if find == nil {
		find = sockdiag.Owners
	}
	owners := find(list)
	best, rank := Obstacle{}, 0
	for i, socket := range list {
		same := on(socket, pin, dst)
		if owners[i].PID == os.Getpid() && !same {
			continue // our own sockets share the port
		}
		r := 1
		switch {
		case same:
			r = 3
		case socket.State == sockdiag.Listen:
			r = 2
		}
		if r <= rank {
			continue
		}
		rank = r
		switch owners[i].PID {
		case os.Getpid(): // leased for a pin with, or without, a source address
			best = Obstacle{Cause: fmt.Sprintf("port %d is taken by a flow of another rule: the socket %s", pin.Port(), socket)}
			continue
		case 0:
			best = Obstacle{
				Cause: fmt.Sprintf("port %d is taken by a program of user %d, which %s", pin.Port(), socket.UID, socket),
				Hint:  fmt.Sprintf("see which by: sudo ss -tanp sport = :%d", pin.Port()),
			}
			continue
		}
		best = Obstacle{
			Cause: fmt.Sprintf("port %d is taken by %s, which %s", pin.Port(), owners[i], socket),
			Hint:  owners[i].Remedy(),
		}
	}
	return best
}

// ended ends the connections that are over and in the way, or says why it can't and how long they last.
func (s Sockets) ended(list []sockdiag.Socket) Obstacle {
	worst := Obstacle{}
	for _, socket := range list {
		if socket.State != sockdiag.TimeWait && socket.Left == 0 {
			// It goes away as soon as the peer answers.
			worst = longer(worst, Obstacle{Cause: fmt.Sprintf("the last connection from %s to %s is not over yet (%s)", socket.Local, socket.Remote, socket.State)})
			continue
		}
		err := s.destroy(socket)
		if err == nil {
			continue
		}
		o := Obstacle{
			Cause: fmt.Sprintf("the last connection from %s to %s is in %s for %v more", socket.Local, socket.Remote, socket.State, socket.Left.Round(time.Second)),
			Left:  max(socket.Left, time.Millisecond),
		}
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			o.Cause += ", which this kernel can't cut short: that takes Linux 6.1 with CONFIG_INET_DIAG_DESTROY, or a connection of this pinproxy's own and net.ipv4.tcp_rfc1337=0"
			o.Hint = "a range of source ports in the rule goes on with the next one"
		case errors.Is(err, unix.EPERM):
			o.Cause += ", which can't be cut short without CAP_NET_ADMIN"
			o.Hint = "a range of source ports in the rule goes on with the next one; run as root, pinproxy frees this one at once"
		default:
			o.Cause += fmt.Sprintf(", which can't be cut short: %v", err)
		}
		worst = longer(worst, o)
	}
	return worst
}

// longer returns the obstacle that lasts longer.
func longer(a, b Obstacle) Obstacle {
	if a.Cause != "" && a.Left >= b.Left {
		return a
	}
	return b
}
