package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"pinproxy/rules"
)

// Request describes the lease that a flow needs.
type Request struct {
	Pin rules.Pin
	Dst netip.AddrPort

	// Cooldown is the minimum time between the release of this lease and the next use of its 4-tuple by any request. It
	// does not count if the 4-tuple was not used (Exchange, ReleaseUnused).
	Cooldown time.Duration

	// Wait is how long to queue when every port is taken; 0 means not at all.
	Wait time.Duration

	// Reclaim is how long another flow must have been idle before it is asked to close while this request waits; 0
	// means that no flow is asked.
	Reclaim time.Duration

	// Holder is the flow. A lease without a holder is never reclaimed, and listings cannot name its flow.
	Holder Holder

	// Turn is the request's place among those that wait for the same ports: the lowest is served first. Requests
	// without a turn (0) are served in order of arrival, and so are requests with equal turns. Don't mix the two.
	Turn uint64

	// Queued is called when the request begins to wait, with what is in its way. It runs on the goroutine that
	// called Acquire, without locks held. May be nil.
	Queued func(*BusyError)
}

// Holder is a flow that holds a lease. Both methods may be called from any goroutine, even shortly after the lease
// was released.
type Holder interface {
	// IdleSince returns when the flow last carried data; the zero time means that it is busy now. Time before the
	// lease began does not count. It is called with the table locked: it must neither block nor call the table.
	IdleSince() time.Time

	// Reclaim asks the flow to close in order. It must not block. The flow itself releases its lease when the
	// connection has ended, and makes sure that this takes a bounded time. It is called at most once per lease,
	// without locks held.
	Reclaim()
}

// Lease is the exclusive right to one 4-tuple. Its methods are safe for concurrent use.
type Lease struct {
	tuple    *tuple
	holder   Holder
	cooldown time.Duration
	since    stamp
	arrival  uint64 // of the request, for Exchange
}

// Local returns the source address and port to bind. If the pin has no address, the address is unspecified (0.0.0.0
// or ::, of the destination's family).
func (l *Lease) Local() netip.AddrPort { return l.tuple.local() }

// Release gives the 4-tuple back; the socket must already be closed. Nobody gets the 4-tuple before rest, which
// covers what the kernel still holds (TIME_WAIT), and the rule's cooldown are both over. The two run concurrently.
// The second and later calls do nothing.
func (l *Lease) Release(rest time.Duration) {
	t := l.tuple.pair.table
	now := t.lock()
	defer t.unlock()
	l.release(max(rest, l.cooldown), now)
}

// release is Release with the table locked.
func (l *Lease) release(rest time.Duration, now stamp) {
	tu := l.tuple
	t := tu.pair.table
	if tu.lease != l {
		return
	}
	tu.vacate()
	t.releases++
	tu.order = t.releases
	tu.rested = now.add(max(rest, 0))
	t.remember(tu, now)
	if tu.rested > now {
		tu.enter(resting, int64(tu.rested))
		tu.settle(now)
		return
	}
	t.deliver(tu, now)
}

// ReleaseUnused is Release without a cooldown, for a 4-tuple from which nothing was sent.
func (l *Lease) ReleaseUnused(rest time.Duration) {
	t := l.tuple.pair.table
	now := t.lock()
	defer t.unlock()
	l.release(rest, now)
}

// withdraw gives back a lease that its flow never saw. The 4-tuple was not used, so it needs no rest and keeps its
// place in the order. The table is locked.
func (l *Lease) withdraw(now stamp) {
	tu := l.tuple
	t := tu.pair.table
	tu.vacate()
	t.remember(tu, now)
	t.deliver(tu, now)
}

// ends returns the request's pair, or the reason why there is none.
func (r *Request) ends() (pairKey, error) {
	if !r.Dst.IsValid() {
		return pairKey{}, errors.New("destination has no address")
	}
	if r.Pin.Ports().Len() == 0 {
		return pairKey{}, errors.New("pin has no ports")
	}
	key := keyOf(r.Pin, r.Dst)
	if key.src.Is4() != key.dst.Addr().Is4() {
		return pairKey{}, fmt.Errorf("source address %s is of the other family", key.src)
	}
	return key, nil
}

// keyOf returns the pair for a pin and a destination.
func keyOf(pin rules.Pin, dst netip.AddrPort) pairKey {
	src, dst := pin.Addr().Unmap(), netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	switch {
	case src.IsValid():
	case dst.Addr().Is4():
		src = netip.IPv4Unspecified()
	default:
		src = netip.IPv6Unspecified()
	}
	return pairKey{src: src, dst: dst}
}
