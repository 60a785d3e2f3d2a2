package udp

import "container/list"

// order lists flows by their last use, with those never answered apart from the others. The zero value is empty.
type order struct{ unanswered, answered list.List }

// place is a flow's position in the order.
type place struct {
	in   *list.List
	elem *list.Element
}

func (o *order) add(f *flow) { f.place = place{&o.unanswered, o.unanswered.PushBack(f)} }

func (o *order) used(f *flow) { f.place.in.MoveToBack(f.place.elem) }

// answer moves f to the answered flows.
func (o *order) answer(f *flow) {
	o.remove(f)
	f.place = place{&o.answered, o.answered.PushBack(f)}
}

func (o *order) remove(f *flow) { f.place.in.Remove(f.place.elem) }

// oldest returns the flow to evict first: the longest-unused one never answered, or else the longest-unused one.
func (o *order) oldest() *flow {
	e := o.unanswered.Front()
	if e == nil {
		e = o.answered.Front()
	}
	if e == nil {
		return nil
	}
	return e.Value.(*flow)
}
