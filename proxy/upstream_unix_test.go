//go:build unix

package proxy

import "testing"

// A connection that ends by our FIN while we look at it was not reset: the application must see its end.
func TestEndOfBothIsNoReset(t *testing.T) {
	u := new(upstream)
	ended := func() bool {
		u.finished.Store(true) // by the other direction's goroutine, in CloseWrite
		return true
	}
	if u.reset(ended) {
		t.Error("a connection that ended in order passes for reset")
	}
	if new(upstream).reset(func() bool { return false }) {
		t.Error("a living connection passes for reset")
	}
	if !new(upstream).reset(func() bool { return true }) {
		t.Error("a connection that ended without our FIN does not pass for reset")
	}
}
