package host

import "time"

// pacer decides how soon to repair. A program that undoes one change usually undoes several, so the pacer waits
// a little for the rest. And a program that keeps doing so (systemd-networkd may, systemd#19106) must not be
// fought in a loop.
type pacer struct {
	delay time.Duration
	last  time.Time // of the last repair
}

const (
	paceFirst = 10 * time.Millisecond
	paceMost  = 5 * time.Second
	paceQuiet = 30 * time.Second // without a repair, after which it starts over
)

// next returns how long to wait before the check.
func (p *pacer) next(now time.Time) time.Duration {
	if p.delay == 0 || now.Sub(p.last) > paceQuiet {
		p.delay = paceFirst
	}
	return p.delay
}

// repaired records a repair.
func (p *pacer) repaired(now time.Time) {
	p.delay = min(2*p.next(now), paceMost)
	p.last = now
}
