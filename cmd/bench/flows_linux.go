package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// opening is how long flows may take to open.
func opening(n int) time.Duration { return 10*socketPatience + time.Duration(n)*2*time.Millisecond }

// spare is how many descriptors a process needs besides those of flows.
const spare = 100

// open has the client and the server hold n flows, and returns how many were established. The caller calls release
// afterwards.
func (s *system) open(ctx context.Context, n int) (int, error) {
	if most := descriptors(); n+spare > most {
		return 0, fmt.Errorf("no %d flows, as a process may have %d descriptors; ulimit -Hn has to be more", n, most)
	}
	opened, err := s.client.do(ctx, task{Do: "hold", To: s.to(portHold), N: n, Time: opening(n)})
	if err != nil {
		return 0, err
	}
	held, err := s.net.server.do(ctx, task{Do: "holding", N: opened.OK, Time: socketPatience})
	if err != nil {
		return 0, fmt.Errorf("%w: the server: %w", errServer, err)
	}
	if held.OK < n/2 || held.OK == 0 {
		return 0, fmt.Errorf("%d of %d flows stand; %s", held.OK, n, opened.Failure)
	}
	return held.OK, nil
}

func (s *system) release(ctx context.Context) {
	_, err := s.client.do(ctx, task{Do: "release"})
	_, serverErr := s.net.server.do(ctx, task{Do: "release"})
	_ = errors.Join(err, serverErr) // the next one to use them will see it
}

// Many flows share the processors, and each takes time to get going. Where a page of memory is slow to get, as in some
// virtual machines, a system that needs a few hundred mebibytes for them is busy with that for seconds.
func busyWarm(o options, n int) time.Duration   { return warm(o) * time.Duration(min(12+n, 336)) / 12 }
func busyWindow(o options, n int) time.Duration { return o.window * time.Duration(500+n) / 500 }

// busyTime is the time for flows that have to be opened first.
func busyTime(n int) func(options) time.Duration {
	return func(o options) time.Duration {
		return busyWarm(o, n) + busyWindow(o, n) + 70*time.Millisecond + time.Duration(n)*400*time.Microsecond
	}
}

// busy has one end of n flows push, and the other end pull and count.
func busy(n int, up bool, measure string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		defer s.release(ctx)
		stand, err := s.open(ctx, n)
		if err != nil {
			return nil, err
		}
		t := task{Do: "pull", Warm: busyWarm(o, n), Time: busyWindow(o, n)}
		client, server := t, t
		if up {
			client.Do = "push"
		} else {
			server.Do = "push"
		}
		var there report
		done := make(chan error, 1)
		go func() {
			var err error
			there, err = s.net.server.do(ctx, server)
			done <- err
		}()
		here, err := s.client.do(ctx, client)
		if serverErr := <-done; serverErr != nil {
			return nil, fmt.Errorf("%w: the server: %w", errServer, serverErr)
		}
		if err != nil {
			return nil, err
		}
		got := here
		if up {
			got = there
		}
		return []result{{measure, 8 * float64(got.Bytes) / float64(got.Took.Nanoseconds()), n - stand + max(here.Failed, there.Failed)}}, nil
	}
}
