package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// drainIdle: a flow that moved no byte for so long is taken to be between
	// two requests, and is ended at once.
	drainIdle  = time.Second
	drainTick  = 50 * time.Millisecond
	finishTick = 5 * time.Millisecond
	// finishLooks is drainIdle where the application has ended and its FIN or reset has come, in looks that find no
	// byte moved, one a finishTick. Looks are counted, not time, for a process that gets no processor for a while would
	// take that for a silence.
	finishLooks = 10
	// lastLooks is finishLooks where neither has come: its kernel hands over what is left, and then a FIN, but maybe
	// not without a pause. Only what another process still holds is waited for in vain.
	lastLooks = 50
)

// Drain ends all flows and returns when none is left. New flows are dropped from
// now on. Idle flows end at once and in order, by FIN on both sides. Those that move
// bytes may finish until grace is over. Then, or when ctx ends, what is left is
// reset: a FIN in the middle of a transfer would say that it is complete. If ctx
// ends, some may still be on their way out.
func (p *Proxy) Drain(ctx context.Context, grace time.Duration) {
	p.drain(ctx, grace, drainTick, func(l *live, _ time.Duration) bool {
		if l.idleFor() >= drainIdle {
			l.end("stopped")
		}
		return false
	})
}

// Finish is Drain when the application has ended, whose last bytes may be under way:
// it takes a shorter silence for their end, the shortest where they are known to have come. Flows that are not answered by then are given
// up. It does not wait for the other ends to close theirs, and reports whether all flows
// have ended: of those that have not everything has been handed to the kernel, FIN
// included, and nothing but the end of this process is to come.
func (p *Proxy) Finish(ctx context.Context, grace time.Duration) (ended bool) {
	return p.drain(ctx, grace, finishTick, func(l *live, since time.Duration) (settled bool) {
		still, needed := l.stillness()
		switch {
		case still >= needed+finishLooks && l.ended() != "":
			return true
		case still >= needed, since >= finishLooks*finishTick && !l.spliced():
			l.end("stopped")
		}
		return false
	})
}

// stillness is called for each look of Finish. It says how many in a row have found that no byte has moved since the one
// before, none while an end takes its bytes slowly, and how many of them are needed to end the flow.
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

// drain takes no new flows, and calls look for each that there is until all have ended or
// are settled, which look reports. look is told how long it has been going on.
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
			if stopped || since > grace {
				l.abort("stopped")
			} else if look(l, since) {
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

// each calls f for every live flow, side by side since a reset may wait for bytes
// under way, and returns their number.
func (p *Proxy) each(f func(*live)) int {
	p.mu.Lock()
	all := make([]*live, 0, len(p.live))
	for l := range p.live {
		all = append(all, l)
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range all {
		wg.Go(func() { f(l) })
	}
	wg.Wait()
	return len(all)
}
