package netns

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// privilege decides which namespaces are created, and which users the command has in them.
type privilege struct {
	user    bool // a user namespace is created
	root    bool // the command runs as root and keeps its capabilities
	every   bool // all users known here are known to the command
	mapRoot bool // root may be known to the command
}

func privileges() privilege {
	var have [2]unix.CapUserData
	_ = unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]) // none, if it fails
	is := func(c uint) bool { return have[c/32].Effective>>(c%32)&1 != 0 }
	root := os.Geteuid() == 0
	p := privilege{root: root, user: !root || !is(unix.CAP_SYS_ADMIN) || !is(unix.CAP_NET_ADMIN)}
	p.every = !p.user || root && is(unix.CAP_SETUID) && is(unix.CAP_SETGID)
	p.mapRoot = is(unix.CAP_SETFCAP)
	return p
}

func (p privilege) attr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if !p.user {
		return a
	}
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	if p.every {
		uids, gids := idMap("/proc/self/uid_map"), idMap("/proc/self/gid_map")
		if uids != nil && gids != nil {
			a.UidMappings, a.GidMappings = uids, gids
			allowed, _ := os.ReadFile("/proc/self/setgroups") // where pinproxy may not, the command can't be allowed to
			a.GidMappingsEnableSetgroups = strings.TrimSpace(string(allowed)) == "allow"
		}
	}
	if !p.root {
		// For the setup before the command runs. Capabilities of a user other than root survive exec only this way.
		a.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	}
	return a
}

// idMap maps each user known here to itself. It returns nil if the map can't be read.
func idMap(path string) (list []syscall.SysProcIDMap) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int64
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil {
			return nil
		}
		if inside > math.MaxInt {
			continue // an int of 32 bits can't name it
		}
		list = append(list, syscall.SysProcIDMap{ContainerID: int(inside), HostID: int(inside), Size: int(min(size, math.MaxInt))})
	}
	return list
}

// explain finds out what forbids namespaces, if err is about that. Ubuntu's AppArmor lets them be created and then
// forbids everything in them, so errors of the child's steps are examined too.
func explain(err error, p privilege) error {
	if errors.Is(err, ErrDevice) {
		return err
	}
	return explainBy(err, p, func(path string) string {
		b, _ := os.ReadFile(path) // a file that can't be read forbids nothing
		return string(b)
	})
}

// explainBy is explain with a function that reads files in /proc.
func explainBy(err error, p privilege, read func(path string) string) error {
	value := func(path string) string { return strings.TrimSpace(read(path)) }
	restricted := p.user && value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	by := ByUnknown
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS):
		by = ByNumber
		if p.user && value("/proc/sys/user/max_user_namespaces") == "0" {
			by = ByLimit
		}
	case !denied:
		return err
	case p.user && value("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		by = ByClone
	case restricted && mayBeRestricted(read):
		by = ByAppArmor
	case under(read, "enforce") && errors.Is(err, unix.EACCES): // a filter's errno is EPERM, as a rule
		by = ByProfile
	case filtered(read("/proc/self/status")):
		by = BySeccomp
	case p.user && p.root && !p.mapRoot:
		by = ByRoot
	case under(read, "enforce"):
		by = ByProfile
	case restricted:
		by = ByAppArmor
	}
	return &ForbiddenError{By: by, Err: err}
}

// mayBeRestricted reports whether Ubuntu's restriction is for us: for programs without a profile, which are under
// unprivileged_userns once they have a user namespace. A profile in the mode unconfined is there to lift it, and what
// an enforced one, as docker-default, allows is its own business.
func mayBeRestricted(read func(path string) string) bool {
	return !under(read, "unconfined") && (!under(read, "enforce") || strings.HasPrefix(label(read), "unprivileged_userns "))
}

// under reports whether an AppArmor profile in this mode is in force.
func under(read func(path string) string, mode string) bool {
	return strings.HasSuffix(label(read), " ("+mode+")")
}

// label returns what AppArmor says we are under. Its file gives the profile and the mode, as in "firefox (enforce)", or
// "unconfined" where there is none; the older file may be another security module's, which names no mode.
func label(read func(path string) string) string {
	label := read("/proc/self/attr/apparmor/current")
	if label == "" { // before Linux 5.8
		label = read("/proc/self/attr/current")
	}
	return strings.TrimRight(label, "\n\x00")
}

// filtered reports, from /proc/self/status, whether a seccomp filter is in place.
func filtered(status string) bool {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(v) == "2"
		}
	}
	return false
}
