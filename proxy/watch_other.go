//go:build !linux

package proxy

import "syscall"

// watch: there is no way to be told by another than Go's poller. Nothing sleeps.
type watch struct{}

func (*watch) add(syscall.RawConn, waker) (uint64, bool) { return 0, false }

func (*watch) remove(syscall.RawConn, uint64) {}
