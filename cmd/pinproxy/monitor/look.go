package monitor

import (
	"context"
	"time"
)

const (
	// rateSpan is the shortest time over which a rate is taken, and rateOld the longest. rateEvery is how old the
	// previous look must be before this one replaces it.
	rateSpan  = 250 * time.Millisecond
	rateEvery = 900 * time.Millisecond
	rateOld   = 5 * time.Second
)

// moved is what had been moved by a given moment.
type moved struct {
	at    time.Time
	all   traffic
	rules map[string]traffic
	flows map[uint64]traffic
}

type traffic struct{ up, down uint64 }

func movedBy(s *Status) moved {
	m := moved{s.Now, traffic{s.Up, s.Down}, make(map[string]traffic, len(s.Rules)), make(map[uint64]traffic, len(s.Flows))}
	for _, r := range s.Rules {
		m.rules[r.Rule] = traffic{r.Up, r.Down}
	}
	for _, f := range s.Flows {
		m.flows[f.ID] = traffic{f.Up, f.Down}
	}
	return m
}

// look returns the current state, for `status` and for the page. The first look in a while takes rateSpan, to measure
// the rates. Between two looks nothing is done, and no counting is added to a flow's path.
func (m *Monitor) look(ctx context.Context) *Status {
	m.looking.Lock()
	defer m.looking.Unlock()
	if time.Since(m.before.at) > rateOld {
		now := m.status()
		m.before = movedBy(&now)
	}
	if wait := rateSpan - time.Since(m.before.at); wait > 0 && m.Pins.Stats().Live > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	now := m.status()
	now.rate(m.before)
	m.ports(&now)
	now.Process = m.process()
	if now.Now.Sub(m.before.at) >= rateEvery {
		m.before = movedBy(&now)
	}
	return &now
}

// rate fills in what has been moved per second since before.
func (s *Status) rate(before moved) {
	span := s.Now.Sub(before.at).Seconds()
	if span <= 0 {
		return
	}
	rate := func(was traffic, up, down uint64) (float64, float64) {
		return perSecond(was.up, up, span), perSecond(was.down, down, span)
	}
	s.UpRate, s.DownRate = rate(before.all, s.Up, s.Down)
	for i := range s.Rules {
		if r := &s.Rules[i]; r.Up+r.Down > 0 {
			was, ok := before.rules[r.Rule]
			if !ok {
				was = traffic{r.Up, r.Down} // it is new since then
			}
			r.UpRate, r.DownRate = rate(was, r.Up, r.Down)
		}
	}
	for i := range s.Flows {
		f := &s.Flows[i]
		f.UpRate, f.DownRate = rate(before.flows[f.ID], f.Up, f.Down)
	}
}

// perSecond returns a whole number: fractions of a byte mean nothing.
func perSecond(was, is uint64, span float64) float64 {
	if is <= was {
		return 0
	}
	return float64(uint64(float64(is-was)/span + 0.5))
}
