package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dirt is what has to be checked again.
type dirt uint

const (
	dirtLink     dirt = 1 << iota // the device, its addresses, and everything that depends on them
	dirtRoutes                    // our routes
	dirtRules                     // our rules, and others' that are asked before
	dirtIPv6                      // whether the host has IPv6
	dirtReserved                  // the reserved ports
	dirtGateways                  // the gateways, and the settings that forwarding depends on
	dirtRegular                   // no cause, a regular check
	dirtAll      = dirtLink | dirtRoutes | dirtRules | dirtIPv6 | dirtReserved | dirtGateways
)

// events is a subscription to the kernel's notifications. It is opened before our first change, so that nothing
// is missed.
type events struct {
	file *os.File // non-blocking, so that a read can be canceled
	raw  syscall.RawConn
}

// eventBuffer is the requested receive buffer size in bytes; the kernel may give less. After an overflow
// everything is checked.
const eventBuffer = 1 << 20

// openEvents subscribes. Changes made through the socket with the port own are ours and are not reported.
func openEvents(own uint32) (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	file := os.NewFile(uintptr(fd), "rtnetlink")
	if err := subscribe(fd, own); err != nil {
		file.Close()
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	return &events{file, raw}, nil
}

func subscribe(fd int, own uint32) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	}
	// Attached before the socket is bound, so that it never contains anything unfiltered.
	filter := eventFilter(own)
	prog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, prog); err != nil {
		return err
	}
	groups := uint32(0)
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	} {
		groups |= 1 << (g - 1)
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
}

// eventFilter drops notifications that may come by the hundred thousand and mean nothing to us, before they
// take up space: our own changes, and new IPv4 routes.
//
// Offsets are those of struct nlmsghdr and struct rtmsg. Loads are big-endian; the fields are not.
func eventFilter(own uint32) []unix.SockFilter {
	const (
		load16 = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		load8  = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		load32 = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret    = unix.BPF_RET | unix.BPF_K
	)
	port := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, own))
	newRoute := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.RTM_NEWROUTE))
	return []unix.SockFilter{
		{Code: load32, K: 12}, // nlmsg_pid
		{Code: equal, K: port, Jt: 5},
		{Code: load16, K: 4}, // nlmsg_type
		{Code: equal, K: uint32(newRoute), Jf: 2},
		{Code: load8, K: unix.SizeofNlMsghdr}, // rtm_family
		{Code: equal, K: unix.AF_INET, Jt: 1},
		{Code: ret, K: 0xffffffff},
		{Code: ret, K: 0},
	}
}

func (e *events) close() error { return e.file.Close() }

// read waits for notifications and returns what to check because of them, possibly nothing. The error is ctx's
// when it ends. A buffer overflow is not an error, but means that everything must be checked.
func (e *events) read(ctx context.Context, buf []byte, about func(message) dirt) (dirt, error) {
	stop := context.AfterFunc(ctx, func() { e.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var n int
	var rerr error
	err := e.raw.Read(func(fd uintptr) bool {
		n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, fmt.Errorf("read rtnetlink events: %w", err)
	case errors.Is(rerr, unix.ENOBUFS):
		return dirtAll, nil
	case rerr != nil:
		return 0, fmt.Errorf("read rtnetlink events: %w", rerr)
	}
	var d dirt
	for m := range messages(buf[:n]) {
		d |= about(m)
	}
	return d, nil
}

// about returns what to check after a notification, for the device with the given index.
func about(m message, link int, ipv6 bool) dirt {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// struct ifinfomsg. A bridge's notifications (AF_BRIDGE) use the same numbers.
		if len(m.data) >= unix.SizeofIfInfomsg && m.data[0] == unix.AF_UNSPEC &&
			int(binary.NativeEndian.Uint32(m.data[4:])) == link {
			return dirtLink
		}
	case unix.RTM_DELADDR: // struct ifaddrmsg
		if len(m.data) >= unix.SizeofIfAddrmsg && int(binary.NativeEndian.Uint32(m.data[4:])) == link {
			return dirtLink
		}
	case unix.RTM_DELRULE, unix.RTM_NEWRULE:
		return dirtRules
	case unix.RTM_DELROUTE:
		if info, ok := parseRoute(m.data); ok && info.protocol == Protocol {
			return dirtRoutes
		}
	case unix.RTM_NEWROUTE:
		// The regular check notices that IPv6 is gone, which is early enough.
		if info, ok := parseRoute(m.data); ok && !ipv6 && info.meansIPv6(link) {
			return dirtIPv6
		}
	}
	return 0
}

// aboutGateways returns dirtGateways if the gateways, or the settings of planPaths, must be checked after a
// notification.
func (h *Host) aboutGateways(m message) dirt {
	switch {
	case m.typ == unix.RTM_NEWNETCONF && (len(h.cfg.Gateways) > 0 || h.cfg.Strict):
		return dirtGateways
	case len(h.cfg.Gateways) == 0:
	case (m.typ == unix.RTM_NEWLINK || m.typ == unix.RTM_DELLINK) && len(m.data) >= unix.SizeofIfInfomsg && m.data[0] == unix.AF_UNSPEC:
		name := ""
		for typ, value := range attributes(m.data[unix.SizeofIfInfomsg:]) {
			if typ == unix.IFLA_IFNAME {
				name = unix.ByteSliceToString(value)
			}
		}
		if h.isGateway(int(binary.NativeEndian.Uint32(m.data[4:])), name) {
			return dirtGateways
		}
	}
	return 0
}

// meansIPv6 reports whether a host with this route has IPv6 of its own: a unicast route to more than its
// neighbors' link-local addresses, on a device other than ours.
func (r routeInfo) meansIPv6(link int) bool {
	a := r.dst.Addr()
	return a.Is6() && r.typ == unix.RTN_UNICAST && r.table != unix.RT_TABLE_LOCAL &&
		r.link != link && r.link != loopbackIndex &&
		!(r.dst.Bits() >= 10 && a.IsLinkLocalUnicast()) && !a.IsMulticast()
}

// loopbackIndex is the index of lo in every network namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1
