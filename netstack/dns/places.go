package dns

import (
	"container/list"
	"context"
	"hash/maphash"
)

// places are those that queries have while their answers are waited for, divided into shares by zone. When all are
// taken, a query gets one from the largest share, if that is not its own: somebody may own a zone whose servers never
// answer. Zones are hashed into a fixed number of shares, as in crowd. They are not safe for concurrent use.
type places struct {
	most   int
	taken  int
	seed   maphash.Seed
	shares [64]list.List // of context.CancelFunc, oldest query first
}

// place is that of one query.
type place struct {
	share *list.List
	elem  *list.Element
}

func newPlaces(most int) places { return places{most: most, seed: maphash.MakeSeed()} }

func (p *places) share(name string) *list.List {
	return &p.shares[maphash.String(p.seed, zone(name))%uint64(len(p.shares))]
}

// take returns a place for a query about name, which ends the query's context when another one gets its place. It reports
// false if there is none.
func (p *places) take(name string, end context.CancelFunc) (place, bool) {
	own := p.share(name)
	if p.taken >= p.most {
		from := own
		for i := range p.shares {
			if l := &p.shares[i]; l.Len() > from.Len() {
				from = l
			}
		}
		if from == own {
			return place{}, false
		}
		p.give(place{from, from.Front()})
	}
	p.taken++
	return place{own, own.PushBack(end)}, true
}

// give takes a place back, unless another query has it.
func (p *places) give(of place) {
	n := of.share.Len()
	end := of.share.Remove(of.elem).(context.CancelFunc)
	p.taken -= n - of.share.Len()
	end()
}
