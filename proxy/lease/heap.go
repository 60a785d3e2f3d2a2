package lease

// A heap holds entries with the least key on top. It stores each entry's position in the entry, so that an entry can
// be removed from the middle in O(log n). container/heap would do the same behind an interface, in twice the time.
type heap []*entry

// top returns the entry with the least key; nil if there is none.
func (h heap) top() *entry {
	if len(h) == 0 {
		return nil
	}
	return h[0]
}

func (h *heap) push(e *entry, key int64) {
	e.key = key
	e.index = len(*h)
	*h = append(*h, e)
	h.up(e.index)
}

// remove takes out e, which must be in h.
func (h *heap) remove(e *entry) {
	i, last := e.index, len(*h)-1
	moved := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = outside
	if moved != e {
		(*h)[i] = moved
		moved.index = i
		h.down(i)
		h.up(moved.index)
	}
}

// raise gives e, which is in h, a greater key.
func (h heap) raise(e *entry, key int64) {
	e.key = key
	h.down(e.index)
}

func (h heap) up(i int) {
	e := h[i]
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].key <= e.key {
			break
		}
		h[i] = h[parent]
		h[i].index = i
		i = parent
	}
	h[i] = e
	e.index = i
}

func (h heap) down(i int) {
	e := h[i]
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if right := child + 1; right < len(h) && h[right].key < h[child].key {
			child = right
		}
		if e.key <= h[child].key {
			break
		}
		h[i] = h[child]
		h[i].index = i
		i = child
	}
	h[i] = e
	e.index = i
}
