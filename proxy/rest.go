package proxy

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is how often we look for directions that may sleep: those that have moved nothing from one look to the
// next.
const lookEvery = 500 * time.Millisecond

// restStep is the least number of flows that must have gone, fallen asleep or come, and then keep still, for it to pay
// to return memory. Flows that come leave behind what their beginning took.
const restStep = 256

// While more than fewBusy flows each move busyBytes from one look to the next, there is work for all processors.
const (
	fewBusy   = 8
	busyBytes = 128 << 10
)

// rest looks after the flows that have a goroutine and could do without one. While there are none, it does nothing.
type rest struct {
	quiet func()             // Config.Quiet
	share func(up, down int) // Config.Share
	busy  func(many bool)    // Config.Busy

	shared atomic.Int64 // what each flow may keep on the way down, in bytes; 0 means fullShare; written under mu

	mu      sync.Mutex
	awake   []*live
	open    int // flows, asleep or not
	looking bool
	many    bool // what busy was told
	// The size counts one for each flow, and one more while it is awake.
	last, peak, told int // the size at the last look, its highest value since quiet was called, and its value at that call
}

// begin adds a flow that has been opened. l.mu is held.
func (r *rest) begin(l *live) {
	if !l.canSleep() {
		l.keepLocked() // nobody looks at it
		return
	}
	l.up.seen, l.down.seen = math.MaxUint64, math.MaxUint64 // young, not idle
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	r.addLocked(l)
}

// end forgets a flow that is over.
func (r *rest) end(l *live) {
	if !l.canSleep() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
}

// add records that a direction of the flow is awake.
func (r *rest) add(l *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(l)
}

func (r *rest) addLocked(l *live) {
	if l.place > 0 {
		return // because of its other direction
	}
	r.awake = append(r.awake, l)
	l.place = len(r.awake)
	if share(len(r.awake)) < r.current() { // a larger one can wait until the next look
		r.shareLocked()
	}
	if !r.looking {
		r.looking = true
		time.AfterFunc(lookEvery, r.look)
	}
}

// remove records that no direction of the flow is awake.
func (r *rest) remove(l *live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.place == 0 {
		return
	}
	n := len(r.awake) - 1
	moved := r.awake[n]
	r.awake[l.place-1], moved.place = moved, l.place
	r.awake[n], l.place = nil, 0
	r.awake = r.awake[:n]
}

// busyLocked tells Config.Busy whether many flows are busy, if that has changed. r.mu is held.
func (r *rest) busyLocked(many bool) {
	if many == r.many {
		return
	}
	r.many = many
	if r.busy != nil {
		r.busy(many)
	}
}

// asleep returns how many flows are asleep.
func (r *rest) asleep() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open - len(r.awake)
}

// look asks the directions that have moved nothing since the last look to sleep.
func (r *rest) look() {
	tired, few, quiet, more := r.find()
	for _, d := range tired {
		d.tire()
		d.unstick()
	}
	for _, l := range few {
		l.unbound()
	}
	if quiet && r.quiet != nil {
		r.quiet()
	}
	if more {
		time.AfterFunc(lookEvery, r.look)
	}
}

// find returns those directions, and all awake flows if there are few now but there were many before. It reports
// whether it is time to return memory, and whether to look again.
func (r *rest) find() (tired []*direction, few []*live, quiet, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	busy := 0
	for _, l := range r.awake {
		moved := uint64(0)
		for _, d := range []*direction{&l.up, &l.down} {
			if n := d.bytes.Load(); n != d.seen {
				moved += n - d.seen
				d.seen = n
			} else {
				tired = append(tired, d)
			}
		}
		if moved >= busyBytes {
			busy++
		}
	}
	r.busyLocked(busy > fewBusy)
	many := r.current() < fullShare
	r.shareLocked()
	if many && r.current() == fullShare {
		few = slices.Clone(r.awake)
	}
	size := r.open + len(r.awake)
	step := max(restStep, size/4)
	calm := max(size-r.last, r.last-size) <= step/8
	r.last, r.peak = size, max(r.peak, size)
	if calm && (r.peak-size >= step || size-r.told >= step) {
		quiet = true
		r.peak, r.told = size, size
	}
	r.looking = len(r.awake) > 0 || !calm
	return tired, few, quiet, r.looking
}
