//go:build !linux

package proxy

import "errors"

// setOptions: marks and shared source ports are Linux's.
func (s Sockets) setOptions(uintptr) error {
	if s.Mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

// sendOver: the option is Linux's.
func sendOver(uintptr, string, int) error { return errors.ErrUnsupported }

// flush: no portable way to ask for the send queue.
func flush(Conn) {}
