package udp

import "container/list"

// order is flows by their last use, those that never got an answer apart from the
// others. The zero value is empty.
type order struct{ unanswered, answered list.List }

// place is where a flow stands in one order.
type place struct {
	in   *list.List
	elem *list.Element
}

func (o *order) add(f *flow, p *place) {
	p.in = &o.unanswered
	p.elem = p.in.PushBack(f)
}

func (o *order) used(p *place) { p.in.MoveToBack(p.elem) }

// answer moves f to those with an answer.
func (o *order) answer(f *flow, p *place) {
	p.in.Remove(p.elem)
	p.in = &o.answered
	p.elem = p.in.PushBack(f)
}

func (o *order) remove(p *place) { p.in.Remove(p.elem) }

func (o *order) len() int { return o.unanswered.Len() + o.answered.Len() }

// oldest is the flow to go first: never answered, or else unused for longest.
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
