package main

import (
	"context"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchdogEvery(t *testing.T) {
	for _, test := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "", 30 * time.Second},
		{"30000000", strconv.Itoa(os.Getpid()), 30 * time.Second},
		{"30000000", strconv.Itoa(os.Getpid() + 1), 0},
		{"0", "", 0},
		{"-5", "", 0},
		{"soon", "", 0},
	} {
		env := map[string]string{"WATCHDOG_USEC": test.usec, "WATCHDOG_PID": test.pid}
		if got := watchdogEvery(func(name string) string { return env[name] }); got != test.want {
			t.Errorf("%+v: got %v", test, got)
		}
	}
}

// Nothing is reported while something is stuck.
func TestWatchdogIsNotFedWhenStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		told, stuck := 0, make(chan struct{})
		done := make(chan error)
		go func() {
			done <- watchdog(ctx, 10*time.Second, func() {
				if told == 3 {
					<-stuck
				}
			}, func() { told++ })
		}()
		time.Sleep(15*time.Second + time.Millisecond)
		synctest.Wait()
		if told != 3 {
			t.Errorf("told %d times in 15 s, want 3", told)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if told != 3 {
			t.Errorf("told %d times while stuck", told-3)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(stuck)
	})
}
