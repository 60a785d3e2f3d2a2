package main

import (
	"os"
	"runtime"
)

// shareCPUs leaves half of the processors to the programs at the two ends of each connection, which handle every
// byte that we do, and to their kernel. With as many threads as processors, each packet wakes a second thread. That
// thread finds nothing to do and takes the processor from the program that the packet is for. While many flows are
// busy there is always something to do, and the programs at their ends wait for us. Then we use all processors.
// docs/performance.md has the measurements. If GOMAXPROCS is set, shareCPUs leaves it alone.
func shareCPUs(busy bool) {
	if os.Getenv("GOMAXPROCS") != "" {
		return
	}
	runtime.SetDefaultGOMAXPROCS()
	if !busy {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}
