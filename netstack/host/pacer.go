package host

import "time"

// pacer says how soon to repair. Somebody who takes a change back usually takes several, so it waits a
// little for the rest; and somebody who keeps on doing so (systemd-networkd may, systemd#19106) must not
// be fought in a loop.
type pacer struct {
	delay time.Duration
	last  time.Time // of the last repair
}

const (
	paceFirst = 10 * time.Millisecond
	paceMost  = 5 * time.Second
	paceQuiet = 30 * time.Second // without a repair, after which it begins anew
)

// next returns how long to wait before looking.
func (p *pacer) next(now time.Time) time.Duration {
	if p.delay == 0 || now.Sub(p.last) > paceQuiet {
		p.delay = paceFirst
	}
	return p.delay
}

// repaired is told of each repair.
func (p *pacer) repaired(now time.Time) {
	p.delay = min(2*p.next(now), paceMost)
	p.last = now
}
