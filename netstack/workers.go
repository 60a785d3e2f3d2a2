package netstack

import (
	"context"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxIdle is how many goroutines may wait for a flow at a time.
const maxIdle = 64

// workers are the goroutines that run tasks. One that has finished waits for another task, because its stack has
// grown by then: gVisor's calls are deep, and a new goroutine copies its stack three times before the SYN-ACK has
// left.
type workers struct {
	tasks chan task // unbuffered: only a waiting worker takes a task
	idle  atomic.Int32
	all   sync.WaitGroup
}

// task is a part of a flow's life: its handler, other work that the handler starts (Flow.Go), or what follows its
// handshake.
type task struct {
	flow *Flow
	ctx  context.Context // the handler's
	work func()

	ep    *tcp.Endpoint // the handshake's endpoint, if the flow goes on or the endpoint must be aborted
	queue *waiter.Queue
	err   error // why the handshake failed
}

func (t task) run() {
	switch f := t.flow; {
	case t.ctx != nil:
		giveUp := f.giveUp
		f.stack.serve.handle(t.ctx, f)
		f.Drop() // in case the handler forgot to answer
		giveUp()
		f.Done()
	case t.work != nil:
		t.work()
	case t.err != nil:
		if t.ep != nil {
			t.ep.Abort()
		}
		f.resume(nil, t.err)
	default:
		f.resume(newConn(f, t.ep, t.queue), nil)
	}
}

// do runs t on a waiting worker or on a new one. It does not block.
func (w *workers) do(t task) {
	select {
	case w.tasks <- t:
	default:
		w.all.Go(func() { w.work(t) })
	}
}

// work runs t and the tasks that follow, until too many workers wait or the stack stops.
func (w *workers) work(t task) {
	stopped := t.flow.stack.context().Done()
	for {
		t.run()
		if w.idle.Add(1) > maxIdle {
			w.idle.Add(-1)
			return
		}
		t = task{} // keep no reference to it while waiting
		select {
		case t = <-w.tasks:
			w.idle.Add(-1)
		case <-stopped:
			return
		}
	}
}

// wait returns when all workers have ended. It must not be called before the stack has stopped and the device is no
// longer read.
func (w *workers) wait() { w.all.Wait() }
