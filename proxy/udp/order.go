package udp

import "container/list"

// order lists flows by their last use, with those never answered apart from the others. The zero value is empty.
type order struct{ unanswered, answered list.List }

// place is a flow's position in one order.
type place struct {
	in   *list.List
	elem *list.Element
}

func (o *order) add(f *flow, p *place) {
	p.in = &o.unanswered
	p.elem = p.in.PushBack(f)
}

func (o *order) used(p *place) { p.in.MoveToBack(p.elem) }

// answer moves f to the answered flows.
func (o *order) answer(f *flow, p *place) {
	p.in.Remove(p.elem)
	p.in = &o.answered
	p.elem = p.in.PushBack(f)
}

func (o *order) remove(p *place) { p.in.Remove(p.elem) }

func (o *order) len() int { return o.unanswered.Len() + o.answered.Len() }

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
