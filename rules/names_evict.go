package rules

import "fmt"

// makeRoom evicts pairs until one more address for the answer's name, one more name for a and one more pair are
// within the limits.
func (o *observation) makeRoom(a *addrEntry) error {
	for o.name.live >= o.limits.addrsPerName {
		if !o.evict(o.oldest(o.name.pairs)) {
			return fmt.Errorf("%d addresses a name: %w", o.limits.addrsPerName, ErrFull)
		}
	}
	for a.live >= o.limits.namesPerAddr {
		if !o.evict(o.oldest(a.pairs)) {
			return fmt.Errorf("%d names an address: %w", o.limits.namesPerAddr, ErrFull)
		}
	}
	for o.live >= o.limits.pairs {
		if !o.evict(o.oldestOfAll()) {
			return fmt.Errorf("%d addresses of all names: %w", o.limits.pairs, ErrFull)
		}
	}
	return nil
}

func (o *observation) evict(p *pair) bool {
	if p != nil {
		o.leave(p)
		o.evicted = append(o.evicted, p)
	}
	return p != nil
}

// oldest returns the pair that has to go: the oldest unused one, else the oldest that can be spared, else nil.
func (o *observation) oldest(pairs []*pair) *pair {
	var unused, spare *pair
	for _, p := range pairs {
		switch {
		case p.leaving || p.seq > o.before:
		case !p.name.inUse():
			if unused == nil || p.age().compare(unused.age()) < 0 {
				unused = p
			}
		case p.spare():
			if spare == nil || p.seq < spare.seq {
				spare = p
			}
		}
	}
	if unused != nil {
		return unused
	}
	return spare
}

// spare reports whether p, whose name is in use, can go without removing a capture that a flow uses.
func (p *pair) spare() bool {
	return p.addr.flows == 0 || p.addr.sharedAll(p.name.sets)
}

// oldestOfAll is oldest for all live pairs. It searches them only when all are in use.
func (o *observation) oldestOfAll() *pair {
	for o.inUse < o.live {
		p, key := o.ages.first()
		if key.first > o.before {
			break // the rest belongs to this answer or is in use
		}
		age := p.age()
		if p.name.inUse() {
			age.first = o.seq // a lower bound: it will be younger than that when its name is freed
		}
		if age == key {
			return p
		}
		o.ages.raise(p, age)
	}
	return o.oldest(o.ages.pairs)
}
