package lab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

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
