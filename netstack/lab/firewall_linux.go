package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// PortRange is an inclusive range of ports.
type PortRange = struct{ First, Last uint16 }

// Filter says what a [Firewall] passes.
type Filter struct {
	Inside string      // the device towards the client; eth0 if empty
	Ports  []PortRange // TCP from inside passes if its source port is one of these
	Reject bool        // answer dropped packets with ICMP administratively prohibited, instead of staying silent
}

// Firewall is a stateless packet filter on a router, the same for IPv4 and IPv6. TCP from inside passes by its
// source port, TCP from outside by its destination port. DNS (port 53, UDP and TCP) and ICMP pass; nothing else
// does. There is no connection tracking.
type Firewall struct {
	host  *Host
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// Labels of rules, by which packets are counted.
const (
	labelPass = "pass" // TCP by port
	labelMore = "more" // DNS, ICMP
	labelDrop = "drop"
)

// Firewall sets up the filter f for the packets that the host forwards. Call it once for a host.
func (h *Host) Firewall(f Filter) *Firewall {
	h.net.helper()
	if f.Inside == "" {
		f.Inside = "eth0"
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns)))
	h.check("open nftables", err)
	w := &Firewall{host: h, conn: conn}
	w.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab"})
	w.chain = conn.AddChain(&nftables.Chain{
		Name: "forward", Table: w.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, p := range f.Ports {
		w.rule(labelPass, accept, device(f.Inside, expr.CmpOpEq), protocol(unix.IPPROTO_TCP), port(sourcePort, p))
		w.rule(labelPass, accept, device(f.Inside, expr.CmpOpNeq), protocol(unix.IPPROTO_TCP), port(destinationPort, p))
	}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		w.rule(labelMore, accept, device(f.Inside, expr.CmpOpEq), protocol(proto), port(destinationPort, PortRange{53, 53}))
		w.rule(labelMore, accept, device(f.Inside, expr.CmpOpNeq), protocol(proto), port(sourcePort, PortRange{53, 53}))
	}
	w.rule(labelMore, accept, protocol(unix.IPPROTO_ICMP))
	w.rule(labelMore, accept, protocol(unix.IPPROTO_ICMPV6))
	if f.Reject {
		w.rule(labelDrop, reject)
	} else {
		w.rule(labelDrop, drop)
	}
	h.check("set up firewall", conn.Flush())
	return w
}

// Firewall makes the router pass TCP from the client only from these source ports, and drop the rest.
func (t *Topology) Firewall(ports ...uint16) *Firewall {
	t.Router.net.helper()
	var f Filter
	for _, p := range ports {
		f.Ports = append(f.Ports, PortRange{p, p})
	}
	return t.Router.Firewall(f)
}

var (
	accept = &expr.Verdict{Kind: expr.VerdictAccept}
	drop   = &expr.Verdict{Kind: expr.VerdictDrop}
	reject = &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
)

// rule appends a rule that counts the packets meeting all matches and applies then to them.
func (w *Firewall) rule(label string, then expr.Any, matches ...[]expr.Any) {
	exprs := append(slices.Concat(matches...), &expr.Counter{}, then)
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: w.chain, Exprs: exprs, UserData: []byte(label)})
}

const (
	sourcePort      = 0 // offsets in the transport header
	destinationPort = 2
)

func device(name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded},
	}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

func port(offset uint32, r PortRange) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Range{
			Op: expr.CmpOpEq, Register: 1,
			FromData: binary.BigEndian.AppendUint16(nil, r.First),
			ToData:   binary.BigEndian.AppendUint16(nil, r.Last),
		},
	}
}

// Passed returns how many TCP packets have passed by their port, in both directions.
func (w *Firewall) Passed() uint64 { return w.count(labelPass) }

// Dropped returns how many packets have been dropped or rejected.
func (w *Firewall) Dropped() uint64 { return w.count(labelDrop) }

func (w *Firewall) count(label string) (packets uint64) {
	w.host.net.helper()
	rules, err := w.conn.GetRules(w.table, w.chain)
	w.host.check(fmt.Sprintf("count what firewall let %s", label), err)
	for _, r := range rules {
		if !bytes.Equal(r.UserData, []byte(label)) {
			continue
		}
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				packets += c.Packets
			}
		}
	}
	return packets
}

// DropOutput makes the host's own firewall drop what leaves by a device.
func (h *Host) DropOutput(dev string) {
	h.net.helper()
	h.addRule("own", nftables.Chain{
		Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	}, append(outOf(dev, expr.CmpOpEq), drop))
}
