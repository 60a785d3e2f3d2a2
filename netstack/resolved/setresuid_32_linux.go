//go:build linux && (386 || arm)

package resolved

import "golang.org/x/sys/unix"

// sysSetresuid is not SYS_SETRESUID, which takes numbers of 16 bits on these systems (setresuid(2), notes).
const sysSetresuid = unix.SYS_SETRESUID32
