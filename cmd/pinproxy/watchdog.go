package main

import (
	"context"
	"os"
	"strconv"
	"time"
)

// watchdogEvery returns how often the service manager wants a sign of life, sd_watchdog_enabled(3), or 0 for never.
func watchdogEvery(getenv func(string) string) time.Duration {
	micros, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros <= 0 {
		return 0
	}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0 // this is meant for another process of the unit
	}
	return time.Duration(micros) * time.Microsecond
}

// watchdog calls tell twice in every interval, as long as alive returns. alive goes through everything that a flow
// needs, and does not return if that is stuck.
func watchdog(ctx context.Context, every time.Duration, alive, tell func()) error {
	if every <= 0 {
		return nil
	}
	tick := time.NewTicker(max(every/2, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			alive()
		}()
		select {
		case <-ctx.Done(): // a stuck alive must not keep us from ending
			return nil
		case <-done:
			tell()
		}
	}
}
