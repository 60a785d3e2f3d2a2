//go:build !linux

package proxy

import "syscall"

// watch can watch nothing: there is no way to be notified except by Go's poller. Nothing sleeps.
type watch struct{}

const readable, hungUp = 0, 0

func (*watch) add(syscall.RawConn, uint32, waker) (uint64, bool) { return 0, false }

func (*watch) remove(syscall.RawConn, uint64) {}
