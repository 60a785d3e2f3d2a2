package rules

import (
	"cmp"
	"container/heap"
)

// queue orders live pairs by a key that only ever grows. The key kept here may lag behind the true one: it is a
// lower bound, and it is corrected when the pair comes first. So answers and flows, which make keys grow, cost
// nothing here.
type queue struct {
	pairs []*pair
	place func(*pair) *queuePlace // the pair's place in this queue
}

type queuePlace struct {
	key   queueKey
	index int
}

// queueKey orders by first, then by second.
type queueKey struct{ first, second int64 }

func (k queueKey) compare(other queueKey) int {
	return cmp.Or(cmp.Compare(k.first, other.first), cmp.Compare(k.second, other.second))
}

func (q *queue) add(p *pair, key queueKey) {
	q.place(p).key = key
	heap.Push((*pairHeap)(q), p)
}

func (q *queue) remove(p *pair) { heap.Remove((*pairHeap)(q), q.place(p).index) }

// raise corrects the key of p, which is in the queue.
func (q *queue) raise(p *pair, key queueKey) {
	q.place(p).key = key
	heap.Fix((*pairHeap)(q), q.place(p).index)
}

// first returns the pair with the least key, or nil, and the key.
func (q *queue) first() (*pair, queueKey) {
	if len(q.pairs) == 0 {
		return nil, queueKey{}
	}
	p := q.pairs[0]
	return p, q.place(p).key
}

// pairHeap is a queue as container/heap sees it.
type pairHeap queue

func (h *pairHeap) Len() int { return len(h.pairs) }

func (h *pairHeap) Less(i, j int) bool {
	return h.place(h.pairs[i]).key.compare(h.place(h.pairs[j]).key) < 0
}

func (h *pairHeap) Swap(i, j int) {
	h.pairs[i], h.pairs[j] = h.pairs[j], h.pairs[i]
	h.place(h.pairs[i]).index = i
	h.place(h.pairs[j]).index = j
}

func (h *pairHeap) Push(x any) {
	p := x.(*pair)
	h.place(p).index = len(h.pairs)
	h.pairs = append(h.pairs, p)
}

func (h *pairHeap) Pop() any {
	last := len(h.pairs) - 1
	p := h.pairs[last]
	h.pairs[last] = nil
	h.pairs = h.pairs[:last]
	return p
}
