package netstack

import (
	"context"
	"sync"
	"sync/atomic"
)

// maxIdle is how many goroutines wait for a flow at a time.
const maxIdle = 64

// workers are the goroutines that run flows. One that has finished waits for
// another flow, for its stack has grown by then: gVisor's calls are deep, and a new
// goroutine copies its stack three times before the SYN-ACK has left.
type workers struct {
	tasks chan task // without a buffer: only who waits takes
	idle  atomic.Int32
	all   sync.WaitGroup
}

// task is one flow to be run.
type task struct {
	stack *Stack
	ctx   context.Context
	flow  *Flow
}

// do runs t on a worker that waits, or on a new one. It does not block.
func (w *workers) do(t task) {
	select {
	case w.tasks <- t:
	default:
		w.all.Go(func() { w.work(t) })
	}
}

// work runs t and what comes after it, until too many wait or the stack stops.
func (w *workers) work(t task) {
	stopped := t.stack.context().Done()
	for {
		t.stack.run(t.ctx, t.flow)
		if w.idle.Add(1) > maxIdle {
			w.idle.Add(-1)
			return
		}
		t = task{} // hold nothing of it while waiting
		select {
		case t = <-w.tasks:
			w.idle.Add(-1)
		case <-stopped:
			return
		}
	}
}

// wait returns when all have ended. It must not be called before the stack has stopped
// and the device is not read any more.
func (w *workers) wait() { w.all.Wait() }
