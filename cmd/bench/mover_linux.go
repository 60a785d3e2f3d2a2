package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Elsewhere in this package each flow has a thread that blocks. A thousand flows would have two thousand such
// threads next to a proxy's few, and the kernel shares the processors out by threads. So where there may be many
// flows, both ends move their data with one thread per processor.

// push sends over all the flows, and pull reads from them, for t.Warm, which does not count, and then t.Time, which
// does. The flows then stay as they are, with data still in flight.
func push(flows []socket, t task) report {
	if len(flows) >= pushMany {
		for _, c := range flows {
			if err := c.setQueue(pushQueue / len(flows)); err != nil {
				return report{Err: err.Error()}
			}
		}
	}
	return shift(flows, t, unix.EPOLLOUT, socket.write)
}

func pull(flows []socket, t task) report {
	return shift(flows, t, unix.EPOLLIN, socket.read)
}

func shift(flows []socket, t task, event uint32, move func(socket, []byte) (int, error)) report {
	workers := runtime.GOMAXPROCS(0)
	movers := make([]*mover, workers)
	for i := range movers {
		m, err := newMover(event, move)
		if err != nil {
			return report{Err: err.Error()}
		}
		defer m.close()
		movers[i] = m
	}
	for i, c := range flows {
		if err := movers[i%workers].add(c); err != nil {
			return report{Err: err.Error()}
		}
	}
	var total atomic.Int64
	var stop atomic.Bool
	var wait sync.WaitGroup
	for _, m := range movers {
		wait.Go(func() {
			for !stop.Load() {
				total.Add(m.step())
			}
		})
	}
	r := countFor(t, &total)
	stop.Store(true)
	wait.Wait()
	r.All = total.Load()
	for _, m := range movers {
		r.Failed += m.failed
		if m.err != nil {
			r.Failure = m.err.Error()
		}
	}
	return r
}

// mover moves bytes of non-blocking flows.
type mover struct {
	poll   int
	event  uint32
	move   func(socket, []byte) (int, error)
	buffer [bufferSize]byte
	ready  [64]unix.EpollEvent
	failed int   // flows
	err    error // of one of them
}

func newMover(event uint32, move func(socket, []byte) (int, error)) (*mover, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	return &mover{poll: fd, event: event, move: move}, nil
}

func (m *mover) close() { _ = unix.Close(m.poll) }

func (m *mover) add(c socket) error {
	err := unix.SetNonblock(int(c), true)
	if err == nil {
		err = unix.EpollCtl(m.poll, unix.EPOLL_CTL_ADD, int(c), &unix.EpollEvent{Events: m.event, Fd: int32(c)})
	}
	if err != nil {
		return fmt.Errorf("watch a flow: %w", err)
	}
	return nil
}

// step moves some data on each flow that is ready, after a short wait for one to become ready.
func (m *mover) step() (moved int64) {
	n, _ := unix.EpollWait(m.poll, m.ready[:], 20) // the only possible failure is EINTR
	for _, e := range m.ready[:max(n, 0)] {
		c := socket(e.Fd)
		n, err := m.move(c, m.buffer[:])
		moved += int64(n)
		if err != nil && !errors.Is(err, unix.ETIMEDOUT) { // ETIMEDOUT means that it would block
			m.failed++
			m.err = err
			_ = unix.EpollCtl(m.poll, unix.EPOLL_CTL_DEL, int(c), nil)
		}
	}
	return moved
}
