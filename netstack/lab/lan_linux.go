package lab

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Addresses of [Topology.LAN].
const (
	Inner4   = "192.0.2.130"
	Inner6   = "2001:db8:3::2"
	Gateway4 = "192.0.2.129"
	Gateway6 = "2001:db8:3::1"
	LAN4     = "192.0.2.128/26"
	LAN6     = "2001:db8:3::/64"
)

// LAN adds a network behind the client, which becomes its hosts' default gateway and forwards for them. It returns
// the only host in that network and the name of the client's device towards it.
//
//	inner ─────────── dev client eth0 ── …
//	  192.0.2.128/26
//	  2001:db8:3::/64
//	   .130, ::2    .129, ::1
//
// Router and server have routes to it. mtu is the MTU of both ends of the link.
func (t *Topology) LAN(mtu int) (inner *Host, dev string) {
	n := t.Client.net
	n.helper()
	inner = n.Host("inner")
	t.Client.Forward()
	dev, innerDev := n.Link(t.Client, []string{Gateway4 + "/26", Gateway6 + "/64"}, inner, []string{Inner4 + "/26", Inner6 + "/64"})
	t.Client.MTU(dev, mtu)
	inner.MTU(innerDev, mtu)
	inner.Route("default", Gateway4)
	inner.Route("default", Gateway6)
	t.Router.Route(LAN4, Client4)
	t.Router.Route(LAN6, Client6)
	return inner, dev
}

// MTU sets the MTU of a device.
func (h *Host) MTU(link string, mtu int) {
	h.net.helper()
	h.check("set mtu of "+link, h.nl.LinkSetMTU(h.link(link), mtu))
}

// Masquerade makes forwarded packets that leave by dev carry the host's own address, for IPv4 and IPv6, as home
// routers do. Call it, or [Host.MasqueradeFrom], once for a host.
func (h *Host) Masquerade(dev string) {
	h.net.helper()
	h.masquerade(outOf(dev, expr.CmpOpEq))
}

// Scramble makes all packets that leave by dev carry another source port, chosen at random, and the host's address: the
// host's own as well. Packets with the mark are spared if it is not 0. Call it, or [Host.Masquerade], once for a host.
func (h *Host) Scramble(dev string, spare uint32) {
	h.net.helper()
	match := outOf(dev, expr.CmpOpEq)
	if spare != 0 {
		match = append(match, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, spare)})
	}
	h.addRule("lan", sourceNAT(), append(match, &expr.Masq{Random: true, FullyRandom: true}))
}

// MasqueradeFrom makes packets from an IPv4 prefix carry the host's own address when they leave by any device except
// dev, as Docker does for a bridge's subnet.
func (h *Host) MasqueradeFrom(prefix, dev string) {
	h.net.helper()
	p := netip.MustParsePrefix(prefix)
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	h.masquerade([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}, outOf(dev, expr.CmpOpNeq))
}

func (h *Host) masquerade(matches ...[]expr.Any) {
	h.net.helper()
	h.addRule("lan", sourceNAT(), append(slices.Concat(matches...), &expr.Masq{}))
}

func sourceNAT() nftables.Chain {
	return nftables.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

// addRule adds a rule to a chain of its own, for IPv4 and IPv6. One table for both can't translate addresses before
// Linux 5.2.
func (h *Host) addRule(table string, chain nftables.Chain, exprs []expr.Any) {
	h.net.helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns)))
	h.check("open nftables", err)
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		own := chain
		own.Table = conn.AddTable(&nftables.Table{Family: family, Name: table})
		conn.AddRule(&nftables.Rule{Table: own.Table, Chain: conn.AddChain(&own), Exprs: exprs})
	}
	h.check("add a rule to table "+table, conn.Flush())
}

// outOf matches the device by which a packet leaves.
func outOf(name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded},
	}
}
