package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Defaults for what a rule may leave out.
const (
	DefaultWait    = 30 * time.Second // busy=wait, and busy=reclaim without a wait beside it
	DefaultReclaim = 5 * time.Second  // busy=reclaim
)

// Rule pins connections to some destinations to some source ports. Rules are made by [Parse], never change
// afterwards and may be shared between goroutines.
type Rule struct {
	host     Host
	ports    PortSet
	pin      Pin
	busy     []Busy
	cooldown time.Duration

	text   string // String, computed once
	source string // where the rule was written, "" when unknown
	line   int    // line in source, 0 when it has none
}

// Host returns which destinations the rule is for.
func (r *Rule) Host() Host { return r.host }

// Ports returns which destination ports the rule is for. It is never empty.
func (r *Rule) Ports() PortSet { return r.ports }

// Pin returns the source ports, and perhaps the source address, that the rule demands.
func (r *Rule) Pin() Pin { return r.pin }

// Busy returns what to do, in this order, when every port of the pin already serves the destination. It is never
// empty: a rule that says nothing waits [DefaultWait]. [Wait] and [Reclaim] together mean one wait: reclaiming goes
// on while the flow waits, wherever it is in the list. The slice is the caller's.
func (r *Rule) Busy() []Busy { return slices.Clone(r.busy) }

// Cooldown returns how long a 4-tuple rests between two uses, or 0 if it does not rest.
func (r *Rule) Cooldown() time.Duration { return r.cooldown }

// Source returns where the rule was written and the line there, as given to [ParseAt] or [ParseFile], or "" and 0
// when unknown.
func (r *Rule) Source() (source string, line int) { return r.source, r.line }

// String returns the rule in its canonical form: names lower-case in ASCII without a final dot, ports sorted and
// merged, defaults left out. Parsing it gives an equal rule. It does not allocate.
func (r *Rule) String() string { return r.text }

// where returns the rule with its source, for messages that name more than one rule.
func (r *Rule) where() string {
	switch {
	case r.source == "":
		return fmt.Sprintf("%q", r.text)
	case r.line == 0:
		return fmt.Sprintf("%q (%s)", r.text, r.source)
	}
	return fmt.Sprintf("%q (%s:%d)", r.text, r.source, r.line)
}

// Host is the destination part of a rule: a name, every name below one, a prefix of addresses, or everything.
// Hosts are comparable with ==. The zero value matches everything, as the rule's "*" does.
type Host struct {
	name     string // lower-case A-labels, no final dot, no "*."
	wildcard bool
	prefix   netip.Prefix
}

// Name returns the host name without a wildcard's "*.", or "" when the host is not a name.
func (h Host) Name() string { return h.name }

// Wildcard reports whether the host is every name below Name, at any depth. Name itself is not among them.
func (h Host) Wildcard() bool { return h.wildcard }

// Prefix returns the addresses as a masked prefix, or the invalid prefix when the host is a name or "*".
func (h Host) Prefix() netip.Prefix { return h.prefix }

// Any reports whether the host is "*", which stands for every destination.
func (h Host) Any() bool { return h == Host{} }

// String returns the host as a rule writes it. A prefix of one address is written as the address alone.
func (h Host) String() string {
	switch {
	case h.wildcard:
		return "*." + h.name
	case h.name != "":
		return h.name
	case !h.prefix.IsValid():
		return "*"
	}
	text := h.prefix.String()
	if h.prefix.IsSingleIP() {
		text = h.prefix.Addr().String()
	}
	if h.prefix.Addr().Is6() {
		return "[" + text + "]"
	}
	return text
}

// Pin is the source side of a rule. A Pin never changes once made and may be shared between goroutines.
type Pin struct {
	addr  netip.Addr
	ports PortSet
	text  string
}

// Addr returns the source address that the pin demands, or the invalid address when any of the host's will do.
func (p Pin) Addr() netip.Addr { return p.addr }

// Ports returns the source ports to choose from. It is never empty in a parsed rule.
func (p Pin) Ports() PortSet { return p.ports }

// Equal reports whether both pins demand the same.
func (p Pin) Equal(other Pin) bool { return p.text == other.text }

// String returns the pin as a rule writes it, such as "63999" or "[2001:db8::1]:63990-63999". Equal pins have
// equal text, so it serves as a map key. It does not allocate.
func (p Pin) String() string { return p.text }

// From returns the pin with another source address.
func (p Pin) From(addr netip.Addr) Pin { return newPin(addr, p.ports) }

func newPin(addr netip.Addr, ports PortSet) Pin {
	p := Pin{addr: addr, ports: ports, text: rangesText(ports.ranges)}
	switch {
	case addr.Is4():
		p.text = addr.String() + ":" + p.text
	case addr.Is6():
		p.text = "[" + addr.String() + "]:" + p.text
	}
	return p
}

// Way is one thing to do when every port of a pin already serves the destination.
type Way uint8

// The ways of a rule's busy option.
const (
	Wait         Way = iota // first come, first served; Busy.For is the longest wait
	Reclaim                 // while waiting, close the flow idle longest; Busy.For is the shortest idle time
	OtherAddress            // dial another address of the same name from the same port
	Any                     // take an ephemeral port and say so
	Fail                    // give up at once
)

// String returns the way as a rule writes it.
func (w Way) String() string {
	switch w {
	case Wait:
		return "wait"
	case Reclaim:
		return "reclaim"
	case OtherAddress:
		return "other-address"
	case Any:
		return "any"
	case Fail:
		return "fail"
	}
	return fmt.Sprintf("Way(%d)", uint8(w))
}

// Busy is a way with its time. The time is more than 0 for [Wait] and [Reclaim], and 0 for the others.
type Busy struct {
	Way Way
	For time.Duration
}

// String returns the way as a rule writes it, without a default time.
func (b Busy) String() string {
	if b.For == b.Way.defaultFor() {
		return b.Way.String()
	}
	return b.Way.String() + ":" + durationText(b.For)
}

func (w Way) defaultFor() time.Duration {
	switch w {
	case Wait:
		return DefaultWait
	case Reclaim:
		return DefaultReclaim
	}
	return 0
}

// defaultBusy reports whether busy is what a rule without the option does.
func defaultBusy(busy []Busy) bool {
	return len(busy) == 1 && busy[0] == Busy{Wait, DefaultWait}
}

// ruleText returns the canonical form of the rule.
func ruleText(r *Rule) string {
	var b strings.Builder
	b.WriteString(r.host.String())
	b.WriteByte(':')
	b.WriteString(r.ports.String())
	b.WriteByte('=')
	b.WriteString(r.pin.String())
	if !defaultBusy(r.busy) {
		for i, way := range r.busy {
			if i == 0 {
				b.WriteString(" busy=")
			} else {
				b.WriteByte(',')
			}
			b.WriteString(way.String())
		}
	}
	if r.cooldown != 0 {
		b.WriteString(" cooldown=")
		b.WriteString(durationText(r.cooldown))
	}
	return b.String()
}

// durationText is Duration.String without the zero minutes and seconds that follow a larger unit: "1h", not
// "1h0m0s".
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
