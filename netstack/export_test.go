package netstack

import "time"

// StopAtOnce leaves handshakes hardly any time when a stack stops, and returns how to undo that.
func StopAtOnce() (undo func()) {
	before := stopTimeout
	stopTimeout = time.Millisecond
	return func() { stopTimeout = before }
}
