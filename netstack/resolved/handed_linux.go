package resolved

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ConnectAs connects to the system's D-Bus as user uid, for a process that will have fewer privileges. The bus asks
// the kernel who is speaking, and the kernel reports the user who connected (SO_PEERCRED). It needs CAP_SETUID, and
// changes only this thread, briefly. The descriptor is closed on exec.
func ConnectAs(uid int) (h Handed, err error) {
	path := "/run/dbus/system_bus_socket"
	if address, ok := os.LookupEnv("DBUS_SYSTEM_BUS_ADDRESS"); ok {
		if path, ok = strings.CutPrefix(address, "unix:path="); !ok || strings.ContainsAny(path, ",;%") {
			return Handed{}, errors.New("the address of D-Bus is no socket's path")
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Handed{}, fmt.Errorf("make a socket: %w", err)
	}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}) // otherwise a hung bus would block us
	if err == nil {
		err = asUser(uid, func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	}
	if err != nil {
		_ = unix.Close(fd)
		return Handed{}, fmt.Errorf("connect to D-Bus: %w", err)
	}
	return Handed{FD: fd, UID: uid}, nil
}

// asUser calls f with the effective user uid.
func asUser(uid int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var mother int32 // the signal we get when our parent ends, if it set one: changing the user clears it
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&mother)), 0)
	was := os.Geteuid()
	if err := setEffective(uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	err := f()
	if back := setEffective(was); back != nil {
		panic(back) // the kernel has no reason to refuse, and what this thread does later would be wrong
	}
	if mother != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(mother), 0, 0, 0)
	}
	return err
}

// setEffective affects only this thread, unlike syscall.Setresuid.
func setEffective(uid int) error {
	if _, _, errno := unix.RawSyscall(sysSetresuid, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return errno
	}
	return nil
}
