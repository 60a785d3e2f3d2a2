package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The kernel's counters of a process, in /proc.

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every architecture Go knows.
const clockTick = 10 * time.Millisecond

// cpuTime returns the processor time that the process and its ended children have used. With descendants, it
// includes all descendants.
func cpuTime(pid int, descendants bool) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// proc_pid_stat(5): the second field is in parentheses, utime to cstime are the 14th to 17th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	sum := time.Duration(ticks) * clockTick
	if descendants {
		for _, child := range children(pid) {
			if t, err := cpuTime(child, true); err == nil { // otherwise it has ended
				sum += t
			}
		}
	}
	return sum, nil
}

// residentSet returns how many bytes of memory the process occupies. With descendants, it includes all descendants.
func residentSet(pid int, descendants bool) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	field, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	kib, err := strconv.ParseInt(field, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resident set of process %d: %w", pid, err)
	}
	sum := kib << 10
	if descendants {
		for _, child := range children(pid) {
			if n, err := residentSet(child, true); err == nil {
				sum += n
			}
		}
	}
	return sum, nil
}

func children(pid int) (list []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // none if it has ended
	for _, t := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				list = append(list, child)
			}
		}
	}
	return list
}
