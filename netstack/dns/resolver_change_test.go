package dns

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Names come and go while others are kept. Kept names stay on their own schedule; removed names are not looked
// up again.
func TestResolverChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := make(map[string][]time.Duration)
		start := time.Now()
		r := fakeResolver(&observer{}, io.Discard, func(ctx context.Context, name string) (found, error) {
			mu.Lock()
			asked[name] = append(asked[name], time.Since(start).Truncate(time.Minute))
			mu.Unlock()
			if name == "slow" {
				<-ctx.Done()
				return found{}, errTimeout
			}
			time.Sleep(time.Second)
			return found{addrs: addrs("203.0.113.1"), ttl: 40 * time.Minute, wire: true}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		first := make(chan time.Time, 1)
		go func() { done <- r.Run(ctx, []string{"kept", "gone"}, func() { first <- time.Now() }) }()
		<-first
		time.Sleep(10 * time.Minute)

		change := func(want time.Duration, names ...string) {
			t.Helper()
			ready, begun := make(chan time.Time, 2), time.Now()
			r.Change(ctx, names, func() { ready <- time.Now() })
			if took := (<-ready).Sub(begun); took != want {
				t.Errorf("%v: ready after %v, want %v", names, took, want)
			}
			synctest.Wait()
			none(t, ready)
		}
		change(time.Second, "new.", "KEPT")
		change(0, "kept", "new")
		change(firstWait, "kept", "new", "slow")
		change(0, "kept", "new")
		time.Sleep(35 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		late := make(chan time.Time, 1)
		r.Change(ctx, []string{"late"}, func() { late <- time.Now() }) // is called although nobody listens
		none(t, late)

		if n := asked["kept"]; len(n) != 2 || n[1] < 40*time.Minute || n[1] > 44*time.Minute {
			t.Errorf("kept was asked for at %v", n)
		}
		for name, want := range map[string]int{"gone": 1, "new": 1, "slow": 1, "late": 0} {
			if got := asked[name]; len(got) != want {
				t.Errorf("%s was asked for at %v", name, got)
			}
		}
	})
}
