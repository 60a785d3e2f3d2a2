package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"pinproxy/rules"
)

// ErrBusy is the error that a *BusyError wraps.
var ErrBusy = errors.New("every source port is busy")

// BusyError says why a lease could not be had in time, and who holds the ports.
type BusyError struct {
	Pin    rules.Pin
	Dst    netip.AddrPort
	Waited time.Duration

	Held    []Held         // who holds the pin's ports, by port; the first few
	Holding int            // how many of the pin's ports are held
	Resting int            // how many are free but may not be used again yet
	FreeAt  time.Time      // when the first rest ends; zero if no port rests
	Free    netip.AddrPort // the port whose rest that is; invalid if no port rests
	Waiting int            // how many other requests wait for the same ports

	at time.Time
}

// Held is a port in use.
type Held struct {
	Local  netip.AddrPort
	Since  time.Time
	Holder Holder // nil if the request had none
}

const (
	// busyNames is how many holders a BusyError names.
	busyNames = 8
	// busyLooks is how many ports are examined to find them: a pin may have 65,535, all but one of them resting.
	busyLooks = 256
)

// busy returns the error for a request that waited for the given time. Each port is either held or resting.
func (p *pool) busy(waited time.Duration, now stamp) *BusyError {
	t := p.pair.table
	err := &BusyError{
		Pin:     p.pin,
		Dst:     p.pair.key.dst,
		Waited:  waited,
		Resting: len(p.heaps[resting]),
		Waiting: p.waiters.len,
		at:      t.time(now),
	}
	err.Holding = p.pin.Ports().Len() - err.Resting
	if e := p.heaps[resting].top(); e != nil {
		err.FreeAt, err.Free = t.time(stamp(e.key)), e.tuple.local()
	}
	looks := 0
	for _, r := range p.pin.Ports().Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			if looks++; looks > busyLooks || len(err.Held) == min(busyNames, err.Holding) {
				return err
			}
			if tu := p.pair.tuples[uint16(port)]; tu.state == held {
				err.Held = append(err.Held, tu.held())
			}
		}
	}
	return err
}

// held describes a held tuple.
func (tu *tuple) held() Held {
	return Held{Local: tu.local(), Since: tu.pair.table.time(tu.lease.since), Holder: tu.lease.holder}
}

// Error names the pin, the destination, and the holders. Holders are named by their String method if they have one.
func (e *BusyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lease %s to %s: %v", e.Pin, e.Dst, ErrBusy)
	if e.Waited > 0 {
		fmt.Fprintf(&b, " after %v", e.Waited.Round(time.Millisecond))
	}
	sep := ": "
	for _, h := range e.Held {
		fmt.Fprintf(&b, "%s%d held for %v", sep, h.Local.Port(), e.at.Sub(h.Since).Round(time.Millisecond))
		if s, ok := h.Holder.(fmt.Stringer); ok {
			fmt.Fprintf(&b, " by %s", s)
		}
		sep = ", "
	}
	if more := e.Holding - len(e.Held); more > 0 {
		fmt.Fprintf(&b, "%s%d more held", sep, more)
		sep = ", "
	}
	if e.Resting > 0 {
		fmt.Fprintf(&b, "%s%d resting, the first for %v more", sep, e.Resting, e.FreeAt.Sub(e.at).Round(time.Millisecond))
	}
	return b.String()
}

func (e *BusyError) Unwrap() error { return ErrBusy }
