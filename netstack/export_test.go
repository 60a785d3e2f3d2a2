package netstack

import "time"

// StopAtOnce leaves handshakes hardly any time when a stack stops. It returns a function that undoes this.
func StopAtOnce() (undo func()) {
	before := stopTimeout
	stopTimeout = time.Millisecond
	return func() { stopTimeout = before }
}
