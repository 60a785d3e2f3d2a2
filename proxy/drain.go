package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// drainIdle is how long a flow must have moved no byte to be considered between two requests. It is then ended at
	// once. A flow that has not been open within this time of its beginning is given up.
	drainIdle  = time.Second
	drainTick  = 50 * time.Millisecond
	finishTick = 5 * time.Millisecond
	// finishLooks takes the place of drainIdle where the application has ended and its FIN or reset has come. It is a
	// number of looks that find no byte moved, one per finishTick. Looks are counted rather than time, because a
	// process that gets no processor for a while would mistake that for silence.
	finishLooks = 10
	// lastLooks takes the place of finishLooks where neither has come. The application's kernel hands over what is
	// left, and then a FIN, but maybe not without a pause. The wait is in vain only for what another process still
	// holds.
	lastLooks = 50
)

// leftBehind is the end of such a flow. It is a warning, because whoever has started `ssh -f` expects it to go on.
const leftBehind = "the command has ended, and a process that it left in the background still had the connection"

// Drain ends all flows and returns when none is left. New flows are dropped from now on. Idle flows end at once and
// in order, by FIN on both sides. Flows that move bytes may finish until grace is over. Then, or when ctx ends, the
// rest is reset: a FIN in the middle of a transfer would say that it is complete. If ctx ends, some flows may still
// be on their way out when Drain returns. So may those whose application has not confirmed our answer; only the end of
// netstack can hurry them.
func (p *Proxy) Drain(ctx context.Context, grace time.Duration) {
	p.drain(ctx, grace, drainTick, func(l *live, _ time.Duration) (settled bool) {
		if l.idleFor() < drainIdle && (l.spliced() || time.Since(l.started) < drainIdle) {
			return false
		}
		l.end("stopped")
		return l.answering()
	})
}

// Finish is Drain for an application that has ended, and whose last bytes may be under way. It takes a shorter
// silence for their end, the shortest where they are known to have come. Flows that are still unanswered then are
// given up. Finish does not wait for the other ends to close theirs. It reports whether all flows have ended. For
// those that have not, everything has been handed to the kernel, FIN included, and only the end of this process is
// still to come, so their lines are logged.
func (p *Proxy) Finish(ctx context.Context, grace time.Duration) (ended bool) {
	defer p.each(func(l *live) {
		if l.spliced() {
			l.log(l.ended())
		}
	})
	return p.drain(ctx, grace, finishTick, func(l *live, since time.Duration) (settled bool) {
		still, needed := l.stillness()
		switch {
		case still >= needed+finishLooks && l.ended() != "":
			return true
		case still >= needed && l.spliced() && !l.heard.Load():
			l.end(leftBehind)
		case still >= needed, since >= finishLooks*finishTick && !l.spliced():
			l.end("stopped")
		}
		return false
	})
}

// stillness is called for each look of Finish. It returns how many looks in a row have found that no byte moved since
// the look before, and how many of them are needed to end the flow. While an end takes its bytes slowly, none count.
func (l *live) stillness() (still, needed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.IdleSince(); last.IsZero() || !last.Equal(l.lookedAt) {
		l.lookedAt, l.still = last, 0
	} else {
		l.still++
	}
	if l.heard.Load() {
		return l.still, finishLooks
	}
	return l.still, lastLooks
}

// drain takes no new flows, and calls look for each flow until all have ended or are settled, which look reports.
// look is told how long drain has been running.
func (p *Proxy) drain(ctx context.Context, grace, every time.Duration, look func(*live, time.Duration) bool) (ended bool) {
	p.mu.Lock()
	p.draining = true
	p.mu.Unlock()
	start := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		stopped := ctx.Err() != nil
		since := time.Since(start)
		var settled atomic.Int64
		left := p.each(func(l *live) {
			switch {
			case stopped || since > grace:
				l.abort("stopped")
				if l.answering() {
					settled.Add(1)
				}
			case look(l, since):
				settled.Add(1)
			}
		})
		if int64(left) == settled.Load() || stopped {
			return left == 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// Reset ends flows by resets, if they are still there.
func (p *Proxy) Reset(flows []FlowInfo, reason string) {
	ids := make(map[uint64]bool, len(flows))
	for _, f := range flows {
		ids[f.ID] = true
	}
	p.each(func(l *live) {
		if ids[l.id] {
			l.abort(reason)
		}
	})
}

// each calls f for every live flow, concurrently because a reset may wait for bytes under way, and returns their
// number.
func (p *Proxy) each(f func(*live)) int {
	p.mu.Lock()
	all := p.livesLocked()
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range all {
		wg.Go(func() { f(l) })
	}
	wg.Wait()
	return len(all)
}
