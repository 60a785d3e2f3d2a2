package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrFull is in the error of [Names.Observe] when an address can't be kept because everything that could make room
// for it has a flow.
var ErrFull = errors.New("all are in use")

// Learned is what an answer changes. The caller carries it out before the answer is released: it adds Add, removes
// Drop and then passes Drop to [Names.Forget].
type Learned struct {
	Add    []Capture // not in place yet; adding one that is in place must do no harm
	Drop   []Capture // of addresses that had to make room
	Shared []Shared  // to warn of, each once
}

// Observe says that an answer gave name these addresses for ttl. If asked is true, an application asked, and the
// name comes first when deciding about these addresses. Otherwise we asked, to know an exact name's addresses in
// time. Observe ignores a name that no rule is interested in. It also ignores addresses that no captured connection
// goes to: loopback addresses, which belong to the kernel's local table, and multicast, broadcast and unspecified
// ones.
//
// Beyond the limits the oldest unused addresses make room: those observed, or last used, longest ago. If there are
// none, addresses make room whose name is in use through another address, but never one that has a flow itself,
// unless other names keep its captures. If there are none of these either, the error wraps [ErrFull] and says which
// address is now unknown. What Learned says of the others must be carried out all the same.
func (n *Names) Observe(name string, addrs []netip.Addr, ttl time.Duration, asked bool, now time.Time) (Learned, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.advance(now)
	e := n.nameEntry(canonical(name))
	if e == nil {
		return Learned{}, nil
	}

	o := observation{
		Names:   n,
		name:    e,
		expires: at + min(max(ttl, 0), maxTTL),
		asked:   asked,
		before:  n.seq,
	}
	n.seq += int64(len(addrs))
	last := n.seq
	// Known addresses come first, so that they don't make room for new ones of the same answer.
	var unknown []int
	for i, addr := range addrs {
		addr = plain(addr)
		if !connectable(addr) {
			continue
		}
		if a := n.byAddr[addr]; a == nil || a.pair(e) == nil {
			unknown = append(unknown, i)
			continue
		}
		o.known(addr, last-int64(i))
	}
	var full error
	for _, i := range unknown {
		if err := o.unknown(plain(addrs[i]), last-int64(i)); err != nil && full == nil {
			full = err
		}
	}
	o.Drop = n.seeOff(o.evicted, nil)
	return o.Learned, full
}

// observation is an answer on its way into Names.
type observation struct {
	*Names
	Learned
	name    *nameEntry
	expires time.Duration
	asked   bool
	evicted []*pair
	before  int64 // Names.seq before this answer; a higher seq belongs to this answer
}

// known refreshes an address that the name already has.
func (o *observation) known(addr netip.Addr, seq int64) {
	a := o.byAddr[addr]
	p := a.pair(o.name)
	p.expires = max(p.expires, o.expires) // holders of the older answer still count on it
	p.seq = max(p.seq, seq)
	if p.leaving {
		o.revive(p)
	}
	o.place(p)
}

// unknown adds an address to the name.
func (o *observation) unknown(addr netip.Addr, seq int64) error {
	a := o.addrEntry(addr)
	if a.pair(o.name) != nil {
		return nil // twice in one answer
	}
	if err := o.makeRoom(a); err != nil {
		return fmt.Errorf("keep address %s of %q: %w", addr, o.name.name, err)
	}
	p := &pair{name: o.name, addr: a, expires: o.expires, seq: seq}
	o.add(p)
	o.place(p)
	for i, other := range a.pairs {
		if other != p {
			o.share(p, other, slices.Index(a.pairs, p) < i)
		}
	}
	return nil
}

// place makes p the last asker of its address if an application asked, and requests its captures.
func (o *observation) place(p *pair) {
	if o.asked {
		i := slices.Index(p.addr.pairs, p)
		copy(p.addr.pairs[1:i+1], p.addr.pairs[:i])
		p.addr.pairs[0] = p
	}
	o.Add = p.addr.raise(p.name.sets, o.Add)
}

// plain returns addr as Names keeps it: IPv4 in IPv6 becomes IPv4, and a zone is removed.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// connectable reports whether a captured TCP connection can go to addr.
func connectable(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() && addr != broadcast
}
