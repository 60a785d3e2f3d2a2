package dns

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"strings"
)

// crowd holds the flows that have an open question, divided into shares: first by the asking address, then by
// the resolver and zone they ask about. A flood has a large share, and so does anything that stays unanswered.
// Smaller shares take precedence. Addresses and zones are hashed into a fixed number of slots, so nobody can
// make the crowd grow.
type crowd struct {
	seed    maphash.Seed
	sources [64]*source // nil: never used
}

// source is a set of asking addresses.
type source struct {
	open   int // flows in all shares
	shares [64]share
}

// share is the set of flows of one source that ask about the same zones.
type share struct {
	source *source
	flows  list.List // of *flow, oldest question first
}

func newCrowd() crowd { return crowd{seed: maphash.MakeSeed()} }

// share returns the share that a question belongs to.
func (c *crowd) share(asker Asker, name string) *share {
	at := &c.sources[maphash.Comparable(c.seed, asker.network())%uint64(len(c.sources))]
	if *at == nil {
		*at = new(source)
	}
	about := struct {
		resolver netip.AddrPort
		zone     string
	}{asker.Resolver, zone(name)}
	s := &(*at).shares[maphash.Comparable(c.seed, about)%uint64(len((*at).shares))]
	s.source = *at
	return s
}

// network returns the host's address, or the network in which it can use any number of addresses.
func (a Asker) network() netip.Addr {
	if a.Host.Is6() {
		return netip.PrefixFrom(a.Host.WithZone(""), 64).Masked().Addr()
	}
	return a.Host
}

// zone guesses from a name which part of it has its own name servers: its last two labels.
func zone(name string) string {
	i := strings.LastIndexByte(name, '.')
	if i > 0 {
		i = strings.LastIndexByte(name[:i], '.')
	}
	return name[i+1:]
}

// largest returns the largest share of the source with the most flows. It returns s if no share is larger.
func (c *crowd) largest(s *share) *share {
	most := s.source
	for _, src := range c.sources {
		if src != nil && src.open > most.open {
			most = src
		}
	}
	if most != s.source {
		s = &most.shares[0]
	}
	for i := range most.shares {
		if l := &most.shares[i]; l.flows.Len() > s.flows.Len() {
			s = l
		}
	}
	return s
}

func (s *share) add(f *flow) *list.Element {
	s.source.open++
	return s.flows.PushBack(f)
}

// remove does nothing if e is in another list.
func (s *share) remove(e *list.Element) {
	n := s.flows.Len()
	s.flows.Remove(e)
	s.source.open -= n - s.flows.Len()
}

func (s *share) oldest() *flow { return s.flows.Front().Value.(*flow) }
