package lab

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Middlebox is a firewall that remembers closed connections: for some time after a FIN it drops every SYN with the
// same ports. It passes everything else. Old stateful firewalls behave like this.
type Middlebox struct {
	host  *Host
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
}

// Middlebox sets up a middlebox for the packets that the host forwards. Call it once for a host, and not together
// with [Host.Firewall].
func (h *Host) Middlebox(memory time.Duration) *Middlebox {
	h.net.helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns)))
	h.check("open nftables", err)
	m := &Middlebox{host: h, conn: conn}
	m.table = conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "middlebox"})
	m.chain = conn.AddChain(&nftables.Chain{
		Name: "forward", Table: m.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	// The library increments its own IDs without a lock. This ID need only be unique within the transaction.
	closed := &nftables.Set{Table: m.table, Name: "closed", ID: 1, KeyType: nftables.TypeInteger, HasTimeout: true, Timeout: memory, Dynamic: true}
	h.check("make the middlebox's memory", conn.AddSet(closed, nil))
	ports := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: sourcePort, Len: 4}
	m.rule(tcpFlags(tcpSYN|tcpACK, tcpSYN), []expr.Any{
		ports, &expr.Lookup{SourceRegister: 1, SetName: closed.Name, SetID: closed.ID}, &expr.Counter{}, drop,
	})
	m.rule(tcpFlags(tcpFIN, tcpFIN), []expr.Any{
		ports, &expr.Dynset{SrcRegKey: 1, SetName: closed.Name, SetID: closed.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: memory},
	})
	h.check("set up the middlebox", conn.Flush())
	return m
}

func (m *Middlebox) rule(parts ...[]expr.Any) {
	var exprs []expr.Any
	for _, p := range append([][]expr.Any{device("eth0", expr.CmpOpEq), protocol(unix.IPPROTO_TCP)}, parts...) {
		exprs = append(exprs, p...)
	}
	m.conn.AddRule(&nftables.Rule{Table: m.table, Chain: m.chain, Exprs: exprs})
}

// TCP flags, at their offset in the header.
const (
	flagsOffset = 13
	tcpFIN      = 0x01
	tcpSYN      = 0x02
	tcpACK      = 0x10
)

// tcpFlags matches packets whose flags under mask equal want.
func tcpFlags(mask, want byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{want}},
	}
}

// Dropped returns how many SYNs it has dropped.
func (m *Middlebox) Dropped() (packets uint64) {
	m.host.net.helper()
	list, err := m.conn.GetRules(m.table, m.chain)
	m.host.check("count what the middlebox dropped", err)
	for _, r := range list {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				packets += c.Packets
			}
		}
	}
	return packets
}
