package identity

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writable is a place in the file system that may be changed, and how.
type Writable struct {
	Path   string
	Access uint64
}

// What may be done below a Writable path: LANDLOCK_ACCESS_FS_*.
const (
	WriteFiles = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	MakeSocket = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	MakeFiles  = WriteFiles | MakeSocket | unix.LANDLOCK_ACCESS_FS_MAKE_REG
)

// changes are all accesses that change something, indexed by the version of Landlock that introduced them. Reading
// is not restricted: rules files may be anywhere.
var changes = [...]uint64{
	1: unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM,
	2: unix.LANDLOCK_ACCESS_FS_REFER,
	3: unix.LANDLOCK_ACCESS_FS_TRUNCATE,
}

// Confine lets this thread, and what it execs, change files only in these places, if the kernel has Landlock. Open
// descriptors stay as they are. The thread also can't see any more what processes outside have open, whatever its
// capabilities (hook_ptrace_access_check). no_new_privs must be set.
func Confine(places []Writable) error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil // ENOSYS: not in this kernel; EOPNOTSUPP: not enabled
	}
	var attr unix.LandlockRulesetAttr
	for v, access := range changes {
		if v <= int(version) {
			attr.Handled_access_fs |= access
		}
	}
	// Older kernels accept only the beginning of the struct.
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(set))
	for _, p := range places {
		if err := allow(int(set), p, attr.Handled_access_fs); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func allow(set int, p Writable, handled uint64) error {
	dir, err := unix.Open(p.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err // what does not exist can't be written to either
	}
	defer unix.Close(dir)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: p.Access & handled, Parent_fd: int32(dir)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
