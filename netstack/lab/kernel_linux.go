package lab

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedKernel skips a test of what only this version of the kernel, or a later one, can do.
func NeedKernel(t testing.TB, major, minor int, what string) {
	t.Helper()
	if !KernelIs(major, minor) {
		t.Skipf("before Linux %d.%d, %s", major, minor, what)
	}
}

// KernelIs reports whether the kernel is of this version or a later one.
func KernelIs(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var has, hasMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &has, &hasMinor); err != nil {
		return false
	}
	return has > major || has == major && hasMinor >= minor
}
