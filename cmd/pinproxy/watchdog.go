package main

import (
	"context"
	"os"
	"strconv"
	"time"
)

// watchdogEvery is how often the service manager wants to hear that we live, sd_watchdog_enabled(3); 0: never.
func watchdogEvery(getenv func(string) string) time.Duration {
	micros, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros <= 0 {
		return 0
	}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0 // another process of the unit is meant
	}
	return time.Duration(micros) * time.Microsecond
}

// watchdog has tell called twice in every, as long as alive returns: it goes through all that a flow needs, and does
// not come back if that is stuck.
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
		case <-ctx.Done(): // also what is stuck must not keep us
			return nil
		case <-done:
			tell()
		}
	}
}
