package main

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"
)

// What a system has been made to do goes on for a while after its turn: buffers are freed, garbage is collected, connections
// are closed. Whoever comes next would pay for that.
const (
	calmTime   = 50 * time.Millisecond // that has to be quiet: five ticks of each processor
	calmEnough = 0.85                  // idle part of it
)

// calm waits until the machine is idle, or for patience, as it may have something else to do.
func calm(ctx context.Context, patience time.Duration) {
	idle, all := processorTicks()
	for range patience / calmTime {
		select {
		case <-ctx.Done():
			return
		case <-time.After(calmTime):
		}
		nowIdle, nowAll := processorTicks()
		if float64(nowIdle-idle) >= calmEnough*float64(nowAll-all) {
			return
		}
		idle, all = nowIdle, nowAll
	}
}

// processorTicks returns how long all processors together have been idle, and have been there, in ticks of USER_HZ.
func processorTicks() (idle, all int64) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	// proc_stat(5): cpu user nice system idle iowait irq softirq steal, and guests', which are in the first two.
	for i, field := range bytes.Fields(line)[1:9] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, 0
		}
		all += n
		if i == 3 || i == 4 {
			idle += n
		}
	}
	return idle, all
}
