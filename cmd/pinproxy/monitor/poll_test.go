package monitor

import (
	"testing"
	"time"
)

// patience is the longest time that anything expected may take.
const patience = 30 * time.Second

// poll waits until done returns true.
func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited %v for %s", patience, what)
		}
	}
}
