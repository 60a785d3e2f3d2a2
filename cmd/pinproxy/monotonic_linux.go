package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic returns the kernel's CLOCK_MONOTONIC, which time.Now does not expose.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
