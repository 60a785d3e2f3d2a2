package netstack

import (
	"runtime"
	"testing"
	"time"
)

// StopAtOnce leaves handshakes hardly any time when a stack stops. It returns a function that undoes this.
func StopAtOnce() (undo func()) {
	before := stopTimeout
	stopTimeout = time.Millisecond
	return func() { stopTimeout = before }
}

// SetMaxParked changes how many SYNs may wait for an answer. It must be called before the first SYN.
func (s *Stack) SetMaxParked(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxParked, s.turns.most = n, n/2
}

// Eventually polls cond for twenty seconds, and reports whether it came true.
func Eventually(t *testing.T, what string, cond func() bool) bool {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-timeout:
			buf := make([]byte, 1<<20)
			t.Errorf("not within 20 s: %s\n%s", what, buf[:runtime.Stack(buf, true)])
			return false
		}
	}
	return true
}
