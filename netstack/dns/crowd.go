package dns

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"strings"
)

// crowd is the flows with an open question, in shares: by the address that asks, and within it by the resolver
// and the zone asked about. Whoever floods, and whatever is silent, has a large share; who has a smaller one goes
// first. Addresses and zones are hashed into a fixed number of places, so that nobody can make it large.
type crowd struct {
	seed    maphash.Seed
	sources [64]*source // nil: never used
}

// source is addresses that ask.
type source struct {
	open   int // flows in all shares
	shares [64]share
}

// share is the flows of one source that ask about the same zones.
type share struct {
	source *source
	flows  list.List // of *flow, the one that asked longest ago first
}

func newCrowd() crowd { return crowd{seed: maphash.MakeSeed()} }

// share returns that of a question.
func (c *crowd) share(src netip.Addr, dst netip.AddrPort, name string) *share {
	if src.Is6() { // a host has as many addresses as it likes in its network
		src = netip.PrefixFrom(src.WithZone(""), 64).Masked().Addr()
	}
	at := &c.sources[maphash.Comparable(c.seed, src)%uint64(len(c.sources))]
	if *at == nil {
		*at = new(source)
	}
	about := struct {
		dst  netip.AddrPort
		zone string
	}{dst, zone(name)}
	s := &(*at).shares[maphash.Comparable(c.seed, about)%uint64(len((*at).shares))]
	s.source = *at
	return s
}

// zone is what has name servers of its own, as far as a name tells: its last two labels.
func zone(name string) string {
	i := strings.LastIndexByte(name, '.')
	if i > 0 {
		i = strings.LastIndexByte(name[:i], '.')
	}
	return name[i+1:]
}

// largest returns the largest share of the source that has most; s, if none is larger.
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

// remove does nothing if e is somewhere else.
func (s *share) remove(e *list.Element) {
	n := s.flows.Len()
	s.flows.Remove(e)
	s.source.open -= n - s.flows.Len()
}

func (s *share) oldest() *flow { return s.flows.Front().Value.(*flow) }
