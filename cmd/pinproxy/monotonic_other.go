//go:build !linux

package main

import "time"

// monotonic is for systemd only.
func monotonic() time.Duration { return 0 }
