package main

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"

	"pinproxy/netstack"
	"pinproxy/netstack/host"
)

// guard tells hosts behind a gateway from this one, and keeps them away from what belongs to this host alone. It is
// nil without a gateway.
type guard struct {
	where  *host.Whereabouts
	strict bool // this host's own connections may have any address of it
}

// newGuard returns nil without gateways. The caller closes it.
func newGuard(gateways []string, strict bool) (*guard, error) {
	if len(gateways) == 0 {
		return nil, nil
	}
	where, err := host.OpenWhereabouts()
	if err != nil {
		return nil, err
	}
	return &guard{where, strict}, nil
}

func (g *guard) close() error {
	if g == nil {
		return nil
	}
	return g.where.Close()
}

// behind says whether a packet from src is another host's. This host's own have the device's address, or with --strict
// any address of this host. Other hosts may hide behind the device's guest address, or behind one of this host's that
// a NAT rule names. If behind can't tell, it takes src for another host's.
func (g *guard) behind(src netip.Addr) bool {
	switch {
	case g == nil, src == host.Addr4, src == host.Addr6:
		return false
	case !g.strict, hidden(src):
		return true
	}
	own, err := g.where.Own(src)
	return err != nil || !own
}

// hidden says whether src stands for hosts behind a gateway whose addresses are masqueraded.
func hidden(src netip.Addr) bool { return src == host.Guest4 || src == host.Guest6 }

var (
	errLoopback = errors.New("it is loopback")
	errLink     = errors.New("it is link-local")
	errMany     = errors.New("it is no single host's address")
	errForm     = errors.New("it is IPv4 in the form of IPv6")
	errOwn      = errors.New("it is this host's own")
)

// notSingle are the addresses of nobody and of everybody.
var notSingle = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255})}

// forbid says why a host behind a gateway must not be led to an address. Forwarded traffic comes here only if the kernel has a
// route for it that leads elsewhere. But a rule may pick another address of the same name, and an IPv6 packet may go
// to an address that package net takes for an IPv4 one.
func (g *guard) forbid(to netip.AddrPort) error {
	dst := to.Addr()
	switch {
	case g == nil:
		return nil
	case dst.Is4In6():
		return errForm
	case dst.IsLoopback():
		return errLoopback
	case dst.Is6() && dst.IsLinkLocalUnicast():
		return errLink
	case dst.IsMulticast(), slices.Contains(notSingle, dst):
		return errMany
	}
	own, err := g.where.Own(dst)
	switch {
	case err != nil:
		return err
	case own:
		return errOwn
	case dst.IsLinkLocalUnicast() && to.Port() != dnsPort: // some clouds have their resolver there
		return errLink
	}
	return nil
}

// paths returns path, or nil if there are no hosts behind a gateway.
func (g *guard) paths() func(src netip.Addr) int {
	if g == nil {
		return nil
	}
	return g.path
}

// leastMTU is what IPv6 requires of every link. Links for IPv4 all have it in practice.
const leastMTU = 1280

// path returns the largest packet size towards a host behind a gateway, or 0 for this host's own connections.
func (g *guard) path(src netip.Addr) int {
	if !g.behind(src) {
		return 0
	}
	if hidden(src) {
		return leastMTU // who it is, and so the way, is conntrack's secret
	}
	mtu, err := g.where.MTU(src)
	if err != nil {
		return leastMTU
	}
	return mtu
}

// lets says whether a DNS query may go on. It answers a query that may not.
func (g *guard) lets(d *netstack.Datagram) bool {
	if g == nil || !g.behind(d.Src().Addr()) || g.forbid(d.Dst()) == nil {
		return true
	}
	d.Unreachable(syscall.EACCES)
	return false
}
