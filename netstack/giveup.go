package netstack

import "time"

// An application that gives up before it is answered tells nobody: closing a socket in SYN_SENT sends no packet. If its
// kernel can be asked (Config.Waits), the answer decides. It is believed only after it has once been that the
// application waits, since a socket that is bound to a device, or is on another host, is not found at all.
//
// Otherwise its SYNs decide, which then stop. They are only a hint: where all processors are busy, they come seconds
// late. An application that still waits sends its SYN again: 1 s after the first (RFC 6298), or 3 s on older
// systems (RFC 1122), then after pauses that stay the same or double. Linux's timers are late by up to an eighth
// (kernel/time/timer.c).
const (
	firstPause = 3500 * time.Millisecond
	pauseSlack = 2 * time.Second
)

const (
	// sweepEvery is how often parked flows are looked at.
	sweepEvery = time.Second
	// maxAsked is for how many of them the kernel is asked each time, at 7 µs each. The others' SYNs decide.
	maxAsked = 1000
)

// word is what the kernel of a parked flow's application says of it.
type word uint8

const (
	unasked word = iota
	waits
	unknown
)

// silentLocked reports whether a parked flow's application has given up, by its SYNs.
func (f *Flow) silentLocked(now time.Time) bool {
	return now.Sub(f.lastSYN) > max(firstPause, 2*f.pause+max(pauseSlack, f.pause/4))
}

// abandonLocked removes a parked flow whose application has given up from the table. Call abandoned once s.mu is
// released.
func (s *Stack) abandonLocked(f *Flow) {
	f.phase = answered
	delete(s.parked, f)
	delete(s.flows, f.id)
}

func (f *Flow) abandoned() {
	if f.giveUp != nil {
		f.giveUp()
	}
	f.releaseSYN()
}

// sweep abandons the parked flows whose applications have given up.
func (s *Stack) sweep() {
	s.ask()
	now := time.Now()
	var gone []*Flow
	s.mu.Lock()
	for f := range s.parked {
		if f.word != waits && f.silentLocked(now) {
			s.abandonLocked(f)
			gone = append(gone, f)
		}
	}
	s.mu.Unlock()
	for _, f := range gone {
		f.abandoned()
	}
	s.lapse(handshakeTimeout, errUnconfirmed)
}

// ask asks the applications' kernel about parked flows, and abandons those that wait no longer.
func (s *Stack) ask() {
	if s.cfg.Waits == nil {
		return
	}
	var list []*Flow
	s.mu.Lock()
	for f := range s.parked { // in no order, so everybody's turn comes
		if f.word != unknown {
			list = append(list, f)
		}
		if len(list) == maxAsked {
			break
		}
	}
	s.mu.Unlock()
	for _, f := range list {
		is, told := s.cfg.Waits(f.src, f.dst)
		s.heard(f, is, told)
		s.GiveWay()
	}
}

// heard records the kernel's word about a flow, which may have been answered meanwhile.
func (s *Stack) heard(f *Flow, is, told bool) {
	s.mu.Lock()
	gone := false
	switch {
	case f.phase != parked:
	case told && is:
		f.word = waits
	case told && f.word == waits:
		s.abandonLocked(f)
		gone = true
	default:
		f.word = unknown
	}
	s.mu.Unlock()
	if gone {
		f.abandoned()
	}
}
