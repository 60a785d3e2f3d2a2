package main

import (
	"errors"
	"fmt"
	"os"
	accounts "os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identity is the user that a process becomes, and what it may do.
type identity struct {
	name     string // user name, for people
	uid, gid int    // -1: unchanged
	groups   []int
	caps     []int
	writes   []writable // everything that it may change in the file system; nil: what its user may
}

// lastCap is above every existing capability (CAP_CHECKPOINT_RESTORE is 40).
const lastCap = 63

// findUser looks up a user by name or number, as in /etc/passwd.
func findUser(name string) (identity, error) {
	id := identity{name: name, uid: -1, gid: -1}
	u, err := accounts.Lookup(name)
	var unknown accounts.UnknownUserError
	if number, nerr := strconv.ParseUint(name, 10, 31); errors.As(err, &unknown) && nerr == nil {
		if u, err = accounts.LookupId(name); err != nil { // a number needs no name
			return identity{name: name, uid: int(number), gid: int(number), groups: []int{int(number)}}, nil
		}
	}
	if err != nil {
		return id, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return id, err
	}
	for _, g := range append([]string{u.Gid}, groups...) {
		if n, err := strconv.Atoi(g); err == nil && !slices.Contains(id.groups, n) {
			id.groups = append(id.groups, n)
		}
	}
	id.uid, _ = strconv.Atoi(u.Uid)
	id.gid, _ = strconv.Atoi(u.Gid)
	return id, nil
}

// mapped says whether the user namespace knows uid and gid. A namespace made by root of a container, or by anybody,
// may know root alone.
func mapped(uid, gid int) bool {
	return inMap("/proc/self/uid_map", uid) && inMap("/proc/self/gid_map", gid)
}

func inMap(path string, id int) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return true // the system calls will tell
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int64 // the whole range has a size that an int of 32 bits can't hold
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err == nil && int64(id) >= inside && int64(id)-inside < size {
			return true
		}
	}
	return false
}

// effective returns a function that says which capabilities the calling thread can use.
func effective() func(c int) bool {
	have := capget()
	return func(c int) bool { return have[c/32].Effective>>(c%32)&1 != 0 }
}

func capget() (have [2]unix.CapUserData) {
	_ = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]) // none, if this fails
	return have
}

// ownFile is this program, whatever has happened to its path.
const ownFile = "/proc/self/exe"

// exec replaces this process with a new run of its program, as id, with no way back. After an error the process is
// in no state to go on.
func (id identity) exec(argv, env []string) error {
	runtime.LockOSThread() // and exec keeps only this thread
	var mother int32       // our parent may want us to end with it; a change of user clears that setting
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&mother)), 0)
	if err := id.become(); err != nil {
		return fmt.Errorf("become user %s: %w", id.name, err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if id.writes != nil {
		if err := confine(id.writes); err != nil {
			return fmt.Errorf("confine file access: %w", err)
		}
	}
	if mother != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(mother), 0, 0, 0)
	}
	// Started by its path, it keeps its name in ps, if id may reach that path.
	err := os.ErrNotExist
	if path, perr := os.Executable(); perr == nil && sameFile(path, ownFile) {
		err = syscall.Exec(path, argv, env)
	}
	if err != nil {
		err = syscall.Exec(ownFile, argv, env)
	}
	return fmt.Errorf("start pinproxy anew as user %s: %w", id.name, err)
}

func sameFile(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// become gives this thread the user and exactly these capabilities, also after exec.
func (id identity) become() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	if effective()(unix.CAP_SETPCAP) {
		for c := range lastCap + 1 {
			if !slices.Contains(id.caps, c) { // EINVAL: there is no such capability
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
			}
		}
	}
	if id.uid >= 0 {
		if err := errors.Join(syscall.Setgroups(id.groups), syscall.Setresgid(id.gid, id.gid, id.gid), syscall.Setresuid(id.uid, id.uid, id.uid)); err != nil {
			return err
		}
	}
	var keep [2]unix.CapUserData
	have := capget()
	for _, c := range id.caps {
		bit := have[c/32].Permitted & (1 << (c % 32))
		keep[c/32].Effective |= bit
		keep[c/32].Permitted |= bit
		keep[c/32].Inheritable |= bit
	}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &keep[0]); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for _, c := range id.caps {
		if keep[c/32].Permitted>>(c%32)&1 == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// mayBindLow says whether this process may bind any port.
func mayBindLow() bool { return effective()(unix.CAP_NET_BIND_SERVICE) }
