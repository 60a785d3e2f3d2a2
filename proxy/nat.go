package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"pinproxy/proxy/sockdiag"
)

// The port that bind and getsockname know is the socket's. This host's NAT may give the packets another one behind it:
// that is what `masquerade random` is for, and any masquerade does it if a host behind has the port towards the same
// destination. Only connection tracking knows. By then the first packet is away, so the flow goes on, but not without
// a word.

// translated is a Dialer that knows what NAT makes of a connection. Sockets is one.
type translated interface {
	// Leaves returns the address and port from which the packets of a connection leave. local may have no address.
	Leaves(local, remote netip.AddrPort) (netip.AddrPort, error)
	// Spare says how to keep NAT from changing such connections.
	Spare(local netip.AddrPort) string
}

// Leaves asks connection tracking, which takes CAP_NET_ADMIN.
func (s Sockets) Leaves(local, remote netip.AddrPort) (netip.AddrPort, error) {
	if local.Addr().IsUnspecified() {
		addr, err := sockdiag.Source(local.Port(), remote, s.Mark)
		if err != nil {
			return netip.AddrPort{}, err
		}
		local = netip.AddrPortFrom(addr, local.Port())
	}
	return sockdiag.Leaves(local, remote)
}

// Spare gives nft's line, as most hosts have an nft whatever wrote their rules.
func (s Sockets) Spare(local netip.AddrPort) string {
	which, family := fmt.Sprintf("meta mark %#x", s.Mark), "ip"
	if s.Mark == 0 {
		which = fmt.Sprintf("tcp sport %d", local.Port())
	}
	if local.Addr().Is6() {
		family = "ip6"
	}
	return fmt.Sprintf("let the chain that does so (nft list ruleset) begin with an exception, as by: nft insert rule %s nat POSTROUTING %s accept", family, which)
}

// warnOfNAT looks, once in probeEvery for each destination, whether NAT changes what a pin demands.
func (l *live) warnOfNAT(pin, local netip.AddrPort) {
	d, ok := l.proxy.cfg.Dialer.(translated)
	if !ok {
		return
	}
	if _, due := l.proxy.natLooks.due(l.upstream); !due {
		return
	}
	from, err := d.Leaves(local, l.upstream)
	if err != nil || !changes(pin, from) {
		return
	}
	l.say(slog.LevelWarn, "this host's NAT changes the flow's source", KindOther, append(l.who(nil),
		slog.String("rule", l.decision.Rule.String()), slog.String("leaves", from.String()), slog.String("hint", d.Spare(pin))))
}

// changes says whether to leave from there is not what the pin demands. One without an address demands none.
func changes(pin, from netip.AddrPort) bool {
	return from.Port() != pin.Port() || !pin.Addr().IsUnspecified() && from.Addr() != pin.Addr()
}

// errNAT is in what Try says of a connection that does not leave from its pin.
var errNAT = errors.New("this host's NAT changes the source")

// ByNAT says whether an error of Try is NAT's fault.
func ByNAT(err error) bool { return errors.Is(err, errNAT) }

// lookAtNAT returns what NAT changes of what the pin demands, as an error.
func (s Sockets) lookAtNAT(pin, local, dst netip.AddrPort) error {
	from, err := s.Leaves(local, dst)
	if err != nil || !changes(pin, from) {
		return nil
	}
	return &advised{err: fmt.Errorf("%w: a connection from port %d leaves from %s", errNAT, pin.Port(), from), hint: s.Spare(pin)}
}
