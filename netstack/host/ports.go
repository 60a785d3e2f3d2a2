package host

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// ports is a set of port numbers, a bitmap like the kernel's own (proc_do_large_bitmap).
type ports [1 << 16 / 64]uint64

func newPorts(ranges []PortRange) ports {
	var p ports
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last); port++ {
			p[port/64] |= 1 << (port % 64)
		}
	}
	return p
}

// parsePorts parses the content of ip_local_reserved_ports: "8080,9148-9150\n", or "\n".
func parsePorts(text string) (ports, error) {
	var ranges []PortRange
	text = strings.TrimSpace(text)
	if text == "" {
		return ports{}, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return ports{}, fmt.Errorf("parse ports %q: %w", part, err)
		}
		b, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return ports{}, fmt.Errorf("parse ports %q: %w", part, err)
		}
		if a > b {
			return ports{}, fmt.Errorf("parse ports %q: not a range", part)
		}
		ranges = append(ranges, PortRange{uint16(a), uint16(b)})
	}
	return newPorts(ranges), nil
}

func (p ports) or(q ports) ports {
	for i := range p {
		p[i] |= q[i]
	}
	return p
}

func (p ports) and(q ports) ports {
	for i := range p {
		p[i] &= q[i]
	}
	return p
}

func (p ports) without(q ports) ports {
	for i := range p {
		p[i] &^= q[i]
	}
	return p
}

func (p ports) len() int {
	n := 0
	for _, w := range p {
		n += bits.OnesCount64(w)
	}
	return n
}

func (p ports) empty() bool { return p == ports{} }

// ranges returns the set as sorted ranges that neither overlap nor touch.
func (p ports) ranges() []PortRange {
	var ranges []PortRange
	for port := p.next(0, true); port < 1<<16; {
		end := p.next(port, false)
		ranges = append(ranges, PortRange{uint16(port), uint16(end - 1)})
		port = p.next(end, true)
	}
	return ranges
}

// next returns the first port at or after from that is in the set (or not in it, if in is false); 1<<16 if
// there is none.
func (p *ports) next(from int, in bool) int {
	for from < 1<<16 {
		w := p[from/64]
		if !in {
			w = ^w
		}
		if w >>= from % 64; w != 0 {
			return from + bits.TrailingZeros64(w)
		}
		from += 64 - from%64
	}
	return 1 << 16
}

// String returns the set as the kernel reads and prints it.
func (p ports) String() string {
	var b strings.Builder
	for i, r := range p.ranges() {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(formatRange(r))
	}
	return b.String()
}

// formatRange returns "443" or "8000-8010".
func formatRange(r PortRange) string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
