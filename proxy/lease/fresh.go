package lease

import (
	"slices"

	"pinproxy/rules"
)

// fresh is the queue of a pool's ports that have no record, stored as ranges: a pin's thousand ports take four bytes
// until they are used.
type fresh []rules.PortRange

// pop takes the next port; 0 if there is none.
func (f *fresh) pop() uint16 {
	if len(*f) == 0 {
		return 0
	}
	head := &(*f)[0]
	port := head.First
	if head.First == head.Last {
		*f = (*f)[1:]
	} else {
		head.First++
	}
	return port
}

// push appends a port.
func (f *fresh) push(port uint16) {
	if n := len(*f); n > 0 && uint32((*f)[n-1].Last)+1 == uint32(port) {
		(*f)[n-1].Last = port
		return
	}
	*f = append(*f, rules.PortRange{First: port, Last: port})
}

// remove takes a port out of any position, if it is there.
func (f *fresh) remove(port uint16) {
	for i, r := range *f {
		if port < r.First || r.Last < port {
			continue
		}
		switch {
		case r.First == r.Last:
			*f = slices.Delete(*f, i, i+1)
		case port == r.First:
			(*f)[i].First++
		case port == r.Last:
			(*f)[i].Last--
		default:
			(*f)[i].Last = port - 1
			*f = slices.Insert(*f, i+1, rules.PortRange{First: port + 1, Last: r.Last})
		}
		return
	}
}
