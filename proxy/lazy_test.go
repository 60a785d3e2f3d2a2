package proxy

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// A lazy context reports the same whether or not somebody waits for it.
func TestLazy(t *testing.T) {
	for _, waited := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			make := func(parent context.Context, after time.Duration) *lazy {
				l := &lazy{Context: parent}
				if after > 0 {
					l.deadline = time.Now().Add(after)
				}
				if waited {
					_ = l.Done()
				}
				return l
			}
			goroutines := runtime.NumGoroutine()
			root, endRoot := context.WithCancel(t.Context())
			outer := make(root, 0)
			first, second, third := make(outer, time.Minute), make(outer, time.Hour), make(outer, 0)
			for _, l := range []*lazy{outer, first, second, third} {
				if err := l.Err(); err != nil {
					t.Errorf("waited %v: Err = %v before any end", waited, err)
				}
			}
			if at, ok := first.Deadline(); !ok || time.Until(at) != time.Minute {
				t.Errorf("Deadline = %v, %v, want in a minute", at, ok)
			}
			if _, ok := third.Deadline(); ok {
				t.Error("a deadline out of nothing")
			}
			defer context.AfterFunc(second, func() {})()
			if n := runtime.NumGoroutine() - goroutines; n > 0 {
				t.Errorf("waited %v: %d goroutines wait", waited, n)
			}
			time.Sleep(2 * time.Minute)
			want := func(name string, l *lazy, want error) {
				t.Helper()
				if err := l.Err(); !errors.Is(err, want) {
					t.Errorf("waited %v: %s: Err = %v, want %v", waited, name, err, want)
				}
				select {
				case <-l.Done():
				case <-time.After(time.Second):
					t.Errorf("waited %v: %s: not done", waited, name)
				}
				if err := l.Err(); !errors.Is(err, want) {
					t.Errorf("waited %v: %s: Err = %v once it is done, want %v", waited, name, err, want)
				}
			}
			want("past its deadline", first, context.DeadlineExceeded)
			third.cancel()
			want("canceled", third, context.Canceled)
			if err := outer.Err(); err != nil {
				t.Errorf("waited %v: the parent has ended with its child: %v", waited, err)
			}
			endRoot()
			want("the parent has ended", outer, context.Canceled)
			want("the parent's parent has ended", second, context.Canceled)
			for _, l := range []*lazy{outer, first, second} {
				l.cancel()
			}
			want("canceled after its deadline", first, context.DeadlineExceeded)
		})
	}
}
