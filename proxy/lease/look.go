package lease

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"pinproxy/rules"
)

// viewed is how many ports of each kind a View lists.
const viewed = 32

// View is a snapshot of what the table knows about a pin towards a destination.
type View struct {
	Held             []Held    // who holds the pin's ports, by port; the first few
	Rests            []Resting // ports that rest, earliest end first; the first few
	Next             []uint16  // free ports in the order in which they will be taken; the first few
	Used             []uint16  // those of Next that a request has had within the last minutes, in the same order
	Holding, Resting int       // number of ports held and number resting
	Waiting          int       // number of requests waiting for the pin
}

// Resting is a port that nobody holds and that is not given out before a certain time.
type Resting struct {
	Local, Remote netip.AddrPort
	Until         time.Time
}

// Look returns what the table knows about pin towards dst. It visits each 4-tuple that was used towards dst within
// the last minutes.
func (t *Table) Look(dst netip.AddrPort, pin rules.Pin) View {
	now := t.lock()
	defer t.unlock()
	pr := t.pairs[keyOf(pin, dst)]
	if pr == nil {
		return View{Next: first(pin.Ports().Ranges(), nil)}
	}
	v := View{}
	var free []*tuple
	for port, tu := range pr.tuples {
		switch {
		case !pin.Ports().Contains(port):
		case tu.state == held:
			v.Holding++
			v.Held = append(v.Held, tu.held())
		case tu.rests(now):
			v.Resting++
			v.Rests = append(v.Rests, tu.rest())
		default:
			free = append(free, tu)
		}
	}
	slices.SortFunc(v.Held, func(a, b Held) int { return cmp.Compare(a.Local.Port(), b.Local.Port()) })
	slices.SortFunc(v.Rests, func(a, b Resting) int { return a.Until.Compare(b.Until) })
	slices.SortFunc(free, func(a, b *tuple) int { return cmp.Compare(a.order, b.order) })
	v.Held, v.Rests = v.Held[:min(viewed, len(v.Held))], v.Rests[:min(viewed, len(v.Rests))]

	unused := fresh(pin.Ports().Ranges())
	for _, p := range pr.pools {
		if p.pin.Equal(pin) {
			unused, v.Waiting = p.fresh, p.waiters.len
		}
	}
	v.Next = first(unused, pr.tuples)
	for _, tu := range free[:min(viewed-len(v.Next), len(free))] {
		v.Used = append(v.Used, tu.port)
	}
	v.Next = append(v.Next, v.Used...)
	return v
}

// Rests lists the 4-tuples that rest, of all pins and towards all destinations. It visits every destination of the
// last minutes, and calls giveWay between two of them.
func (t *Table) Rests(giveWay func()) (list []Resting) {
	t.lock()
	pairs := slices.Collect(maps.Values(t.pairs))
	t.mu.Unlock()
	for _, pr := range pairs {
		now := t.lock()
		for _, p := range pr.pools {
			for _, e := range p.heaps[resting] {
				if e.tuple.rests(now) && e.tuple.entries == e { // once, whatever pools it is in
					list = append(list, e.tuple.rest())
				}
			}
		}
		t.mu.Unlock()
		giveWay()
	}
	return list
}

// rests reports whether nobody gets the tuple yet, though nobody has it.
func (tu *tuple) rests(now stamp) bool { return tu.state == resting && tu.rested > now }

func (tu *tuple) rest() Resting {
	return Resting{Local: tu.local(), Remote: tu.pair.key.dst, Until: tu.pair.table.time(tu.rested)}
}

// Busy returns what is in the way of a request for pin towards dst that waits: what Request.Queued was told, as it is
// now. It returns nil if nothing is: a port is free.
func (t *Table) Busy(dst netip.AddrPort, pin rules.Pin) *BusyError {
	now := t.lock()
	defer t.unlock()
	pr := t.pairs[keyOf(pin, dst)]
	if pr == nil {
		return nil
	}
	for _, p := range pr.pools {
		if p.pin.Equal(pin) && !p.free(now) {
			return p.busy(0, now)
		}
	}
	return nil
}

// free reports whether a request would get a port at once.
func (p *pool) free(now stamp) bool {
	rest := p.heaps[resting].top()
	return len(p.fresh) > 0 || p.heaps[ready].top() != nil || rest != nil && rest.key <= int64(now)
}

// first returns the first ports of a queue, skipping those with a record.
func first(f fresh, but map[uint16]*tuple) []uint16 {
	var list []uint16
	for _, r := range f {
		for port := int(r.First); port <= int(r.Last) && len(list) < viewed; port++ {
			if but[uint16(port)] == nil {
				list = append(list, uint16(port))
			}
		}
	}
	return list
}
