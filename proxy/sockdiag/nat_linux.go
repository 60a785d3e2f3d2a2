package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	conntrackGet = 1<<8 | 1 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET

	attributeOrig  = 1 // CTA_TUPLE_ORIG
	attributeReply = 2 // CTA_TUPLE_REPLY

	tupleIP    = 1 // CTA_TUPLE_IP
	tupleProto = 2 // CTA_TUPLE_PROTO

	ipSource, ipDest           = 1, 2 // CTA_IP_V4_SRC, CTA_IP_V4_DST; those of IPv6 follow
	protoNum                   = 1    // CTA_PROTO_NUM
	protoSource, protoDestPort = 2, 3 // CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT

	typeMask = 0x3fff // NLA_TYPE_MASK

	nfgenmsgLen = 4
)

// tracking is there if the kernel tracks connections, without which there is no NAT. A query where it is not would load
// the module that answers it.
const tracking = "/proc/sys/net/netfilter/nf_conntrack_count"

// Leaves returns the address and port from which the packets of a TCP connection leave this host: those of its socket,
// unless this host's NAT gives them others. It takes CAP_NET_ADMIN where connections are tracked.
func Leaves(local, remote netip.AddrPort) (netip.AddrPort, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	if _, err := os.Stat(tracking); err != nil {
		return local, nil
	}
	family, v6 := byte(unix.AF_INET), uint16(0)
	if local.Addr().Is6() {
		family, v6 = unix.AF_INET6, 2
	}
	ip := appendAttribute(nil, ipSource+v6, local.Addr().AsSlice()...)
	ip = appendAttribute(ip, ipDest+v6, remote.Addr().AsSlice()...)
	proto := appendAttribute(nil, protoNum, unix.IPPROTO_TCP)
	proto = appendAttribute(proto, protoSource, binary.BigEndian.AppendUint16(nil, local.Port())...)
	proto = appendAttribute(proto, protoDestPort, binary.BigEndian.AppendUint16(nil, remote.Port())...)
	tuple := appendAttribute(nil, tupleIP|unix.NLA_F_NESTED, ip...)
	tuple = appendAttribute(tuple, tupleProto|unix.NLA_F_NESTED, proto...)
	r := appendAttribute([]byte{family, 0, 0, 0}, attributeOrig|unix.NLA_F_NESTED, tuple...)
	b, err := ask(unix.NETLINK_NETFILTER, conntrackGet, 0, r)
	switch {
	case errors.Is(err, unix.ENOENT): // not tracked, as by a rule `notrack`
		return local, nil
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("ask what NAT makes of %s to %s: %w", local, remote, err)
	case len(b) < nfgenmsgLen:
		return local, nil
	}
	var addr netip.Addr
	var port []byte
	for kind, tuple := range attributes(b[nfgenmsgLen:]) {
		if kind&typeMask != attributeReply { // to where the answers are expected
			continue
		}
		for kind, part := range attributes(tuple) {
			for of, value := range attributes(part) {
				switch {
				case kind&typeMask == tupleIP && of&typeMask == ipDest+v6:
					addr, _ = netip.AddrFromSlice(value)
				case kind&typeMask == tupleProto && of&typeMask == protoDestPort:
					port = value
				}
			}
		}
	}
	if !addr.IsValid() || len(port) != 2 {
		return netip.AddrPort{}, fmt.Errorf("ask what NAT makes of %s to %s: %w", local, remote, unix.EBADMSG)
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port)), nil
}
