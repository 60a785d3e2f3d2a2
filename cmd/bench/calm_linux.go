package main

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"
)

// A system goes on working for a while after its turn: it frees buffers, collects garbage and closes connections.
// The next system would pay for that.
const (
	calmTime   = 50 * time.Millisecond // how long it has to be quiet: five ticks of each processor
	calmEnough = 0.85                  // the idle share of it
)

// calm waits until the machine is idle, but at most for patience, since the machine may have other work.
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

// processorTicks returns the idle time and the total time of all processors together, in ticks of USER_HZ.
func processorTicks() (idle, all int64) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	// proc_stat(5): cpu user nice system idle iowait irq softirq steal. The fields for guests are included in the
	// first two.
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
