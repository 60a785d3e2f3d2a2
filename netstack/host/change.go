package host

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// standing is the part of a plan in place that can change.
type standing struct {
	rules  map[family][]rule // of the captured families, in plan order
	routes map[dest]bool     // of both families; true if permanent, out of Remove's reach
}

// change leads from what is in place to what a configuration wants. Whatever is in both stays untouched.
type change struct {
	addRoutes []dest // into tables that nothing may look into yet, so before the rules
	addRules  []rule // in plan order
	delRules  []rule // in reverse plan order, so that nothing is captured that a guard should have let through
	delRoutes []dest
	then      standing
}

// planChange returns the change that leads to c plus the learned captures. It is pure. Errors concern the
// configuration, including a lack of room for the new rules beside the old ones.
func planChange(c Config, learned []Capture, now standing) (change, error) {
	if err := c.check(); err != nil {
		return change{}, err
	}
	for _, capture := range learned {
		if err := c.checkCapture(capture); err != nil {
			return change{}, err
		}
	}
	ch := change{then: standing{rules: make(map[family][]rule), routes: make(map[dest]bool, len(now.routes))}}
	over := 0
	for _, fam := range []family{v4, v6} {
		before, on := now.rules[fam]
		if !on {
			continue
		}
		after, more := planRules(c, fam, before)
		ch.then.rules[fam], over = after, max(over, more)
		ch.addRules = append(ch.addRules, without(after, before)...)
		gone := without(before, after)
		slices.Reverse(gone)
		ch.delRules = append(ch.delRules, gone...)
	}
	if over > 0 {
		return change{}, fmt.Errorf("%d ranges of ports too many for the host's rule list beside those of the rules before: start pinproxy anew", over)
	}

	for _, capture := range learned {
		ch.then.routes[destOf(capture)] = false
	}
	for _, fam := range []family{v4, v6} {
		for _, d := range c.forGood(fam) {
			ch.then.routes[d] = true
		}
	}
	ch.addRoutes = ch.routes(ch.then.routes, now.routes, now)
	ch.delRoutes = ch.routes(now.routes, ch.then.routes, now)
	return ch, nil
}

// forGood returns the routes of a family that stay in place from beginning to end, each once.
func (c Config) forGood(fam family) []dest {
	list := []dest{{tableSelf, fam.all()}}
	if c.DNS {
		list = append(list, dest{tableDNS, fam.all()})
	}
	seen := map[Capture]bool{}
	for _, capture := range c.Captures {
		if fam.has(capture.Dst.Addr()) && !seen[capture] {
			seen[capture] = true
			list = append(list, destOf(capture))
		}
	}
	return list
}

func destOf(c Capture) dest { return dest{tablePortSet + c.Set, c.Dst} }

// without returns the rules of list that are not in other, in order.
func without(list, other []rule) []rule {
	in := make(map[rule]bool, len(other))
	for _, r := range other {
		in[r] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(r rule) bool { return in[r] })
}

// routes returns the routes of list that are not in other and whose family is captured, in order.
func (change) routes(list, other map[dest]bool, now standing) []dest {
	var found []dest
	for d := range list {
		_, both := other[d]
		if _, on := now.rules[d.family()]; on && !both {
			found = append(found, d)
		}
	}
	slices.SortFunc(found, compareDests)
	return found
}

// compareDests orders routes by family, table and destination.
func compareDests(a, b dest) int {
	return cmp.Or(cmp.Compare(a.family(), b.family()), cmp.Compare(a.table, b.table), a.dst.Compare(b.dst))
}

// text returns the lines a person would type, for a device and its addresses.
func (ch change) text(c Config) string {
	var b strings.Builder
	for _, d := range ch.addRoutes {
		fmt.Fprintln(&b, route{c.Link, d})
	}
	for _, r := range ch.addRules {
		fmt.Fprintln(&b, r)
	}
	for _, r := range ch.delRules {
		fmt.Fprintln(&b, r.Undo())
	}
	for _, d := range ch.delRoutes {
		fmt.Fprintln(&b, d.del())
	}
	return b.String()
}
