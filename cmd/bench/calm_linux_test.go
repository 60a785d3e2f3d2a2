package main

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestProcessorTicks(t *testing.T) {
	idle, all := processorTicks()
	time.Sleep(200 * time.Millisecond)
	nowIdle, nowAll := processorTicks()
	// 20 ticks of each processor, some of which the kernel may not have counted yet.
	if least := int64(10 * runtime.NumCPU()); nowAll-all < least {
		t.Errorf("%d ticks in 200 ms on %d processors, want %d at least", nowAll-all, runtime.NumCPU(), least)
	}
	if few := int64(5); nowIdle < idle-few || nowIdle-idle > nowAll-all+few { // iowait may decrease (proc_stat(5))
		t.Errorf("%d of %d ticks were idle", nowIdle-idle, nowAll-all)
	}
}

func TestCalmEnds(t *testing.T) {
	start := time.Now()
	calm(t.Context(), 2*calmTime)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calm(ctx, time.Hour)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}
