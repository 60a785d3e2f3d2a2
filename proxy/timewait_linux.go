package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A 4-tuple that we closed first stays in TIME_WAIT for 60 s. connect takes it
// over at once if the peer spoke TCP timestamps (tcp_twsk_unique). Where it did
// not, as through old firewalls, connect fails with EADDRNOTAVAIL, and sock_diag
// can remove exactly that state: SOCK_DESTROY (tcp_abort), with CAP_NET_ADMIN and
// CONFIG_INET_DIAG_DESTROY.
//
// TIME_WAIT keeps late duplicates of the old connection away from a new one (RFC
// 9293, section 3.6.1). Linux's initial sequence numbers grow with time
// (secure_tcp_seq), so an old segment falls outside the new window unless the old
// connection outran that clock: the price of having one port only.

// States of struct inet_diag_msg (include/net/tcp_states.h).
const tcpTimeWait = 6

// Layout of struct inet_diag_req_v2 and inet_diag_msg (include/uapi/linux/inet_diag.h).
const (
	diagRequestLen = 56
	diagSockID     = 8               // struct inet_diag_sockid in the request
	diagCookie     = diagSockID + 40 // the cookie in it
	msgLen         = 72
	msgState       = 1 // in the message
	msgSockID      = 4
	msgCookie      = msgSockID + 40
	msgInode       = 68
)

var anyCookie = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // INET_DIAG_NOCOOKIE

// forgetTimeWait removes the TIME_WAIT of a 4-tuple and reports whether there was
// one. It looks first: the same request would end a living connection, of another
// process too. What is then destroyed is the very socket that was looked at.
func forgetTimeWait(local, remote netip.AddrPort) (bool, error) {
	get := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	get.AddRawData(diagRequest(local, remote, anyCookie))
	list, err := get.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at the socket %s to %s: %w", local, remote, err)
	case len(list) != 1 || len(list[0]) < msgLen || list[0][msgState] != tcpTimeWait:
		return false, nil
	}
	destroy := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	destroy.AddRawData(diagRequest(local, remote, [8]byte(list[0][msgCookie:])))
	if _, err := destroy.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("end the TIME_WAIT of %s to %s: %w", local, remote, err)
	}
	return true, nil
}

// diagRequest asks for one TCP socket.
func diagRequest(local, remote netip.AddrPort, cookie [8]byte) []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_TCP
	if remote.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // all states
	id := b[diagSockID:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	copy(b[diagCookie:], cookie[:])
	return b
}

// source is the address the kernel would choose towards dst: a UDP socket with
// the same mark is asked, which sends nothing.
func (s Sockets) source(dst netip.AddrPort) (netip.Addr, error) {
	d := net.Dialer{Control: s.control}
	c, err := d.Dial("udp", dst.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the source address towards %s: %w", dst, err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// makeRoom frees the 4-tuple that connect found in use, if only a TIME_WAIT holds
// it, and reports whether it did.
func (s Sockets) makeRoom(pin, dst netip.AddrPort) (bool, error) {
	addr := pin.Addr()
	if addr.IsUnspecified() {
		var err error
		if addr, err = s.source(dst); err != nil {
			return false, err
		}
	}
	return forgetTimeWait(netip.AddrPortFrom(addr, pin.Port()), dst)
}
