package identity

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

// Identity is the user that a process becomes, and what it may do.
type Identity struct {
	Name     string // user name, for people
	UID, GID int    // -1: unchanged
	Groups   []int
	Caps     []int
	Writes   []Writable // everything that it may change in the file system; nil: what its user may
}

// lastCap is above every existing capability (CAP_CHECKPOINT_RESTORE is 40).
const lastCap = 63

// Find looks up a user by name or number, as in /etc/passwd.
func Find(name string) (Identity, error) {
	id := Identity{Name: name, UID: -1, GID: -1}
	u, err := accounts.Lookup(name)
	var unknown accounts.UnknownUserError
	if number, nerr := strconv.ParseUint(name, 10, 31); errors.As(err, &unknown) && nerr == nil {
		if u, err = accounts.LookupId(name); err != nil { // a number needs no name
			return Identity{Name: name, UID: int(number), GID: int(number), Groups: []int{int(number)}}, nil
		}
	}
	if err != nil {
		return id, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return id, err
	}
	id.Groups = groupsIn("/proc/self/gid_map", append([]string{u.Gid}, groups...))
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return id, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return id, err
	}
	id.UID, id.GID = uid, gid
	return id, nil
}

// groupsIn returns those groups that the user namespace knows. Nobody can be in another one there, and to ask for it would
// keep us from becoming the user at all.
func groupsIn(gidMap string, groups []string) (list []int) {
	for _, g := range groups {
		if n, err := strconv.Atoi(g); err == nil && !slices.Contains(list, n) && inMap(gidMap, n) {
			list = append(list, n)
		}
	}
	return list
}

// Mapped says whether the user namespace knows uid and gid. A namespace made by root of a container, or by anybody,
// may know root alone.
func Mapped(uid, gid int) bool {
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

// Effective returns a function that says which capabilities the calling thread can use.
func Effective() func(c int) bool {
	have := capget()
	return func(c int) bool { return have[c/32].Effective>>(c%32)&1 != 0 }
}

func capget() (have [2]unix.CapUserData) {
	_ = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]) // none, if this fails
	return have
}

// OwnFile is this program, whatever has happened to its path.
const OwnFile = "/proc/self/exe"

// Exec replaces this process with a new run of its program, as id, with no way back. After an error the process is
// in no state to go on.
func (id Identity) Exec(argv, env []string) error {
	runtime.LockOSThread() // and exec keeps only this thread
	var mother int32       // our parent may want us to end with it; a change of user clears that setting
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&mother)), 0)
	if err := id.Become(); err != nil {
		return fmt.Errorf("become user %s: %w", id.Name, err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if id.Writes != nil {
		if err := Confine(id.Writes); err != nil {
			return fmt.Errorf("confine file access: %w", err)
		}
	}
	if mother != 0 {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(mother), 0, 0, 0)
	}
	// Started by its path, it keeps its name in ps, if id may reach that path.
	err := os.ErrNotExist
	if path, perr := os.Executable(); perr == nil && sameFile(path, OwnFile) {
		err = syscall.Exec(path, argv, env)
	}
	if err != nil {
		err = syscall.Exec(OwnFile, argv, env)
	}
	return fmt.Errorf("start pinproxy anew as user %s: %w", id.Name, err)
}

func sameFile(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}

// Become gives this thread the user and exactly these capabilities, also after exec.
func (id Identity) Become() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	if Effective()(unix.CAP_SETPCAP) {
		for c := range lastCap + 1 {
			if !slices.Contains(id.Caps, c) { // EINVAL: there is no such capability
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
			}
		}
	}
	if id.UID >= 0 {
		if err := errors.Join(syscall.Setgroups(id.Groups), syscall.Setresgid(id.GID, id.GID, id.GID), syscall.Setresuid(id.UID, id.UID, id.UID)); err != nil {
			return err
		}
	}
	var keep [2]unix.CapUserData
	have := capget()
	for _, c := range id.Caps {
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
	for _, c := range id.Caps {
		if keep[c/32].Permitted>>(c%32)&1 == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return err
		}
	}
	return nil
}
