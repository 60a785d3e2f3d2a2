package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
)

// Config says what to run and what the command sees.
type Config struct {
	Path string   // the program, as [LookPath] returned it
	Argv []string // its arguments, beginning with its name

	Link    string         // the device's name; empty: link.Default
	Offload bool           // try segmentation and checksum offload
	Addrs   []netip.Addr   // of the device
	Routes  []netip.Prefix // into the device
	Files   []File         // files that the command sees instead of the host's
}

// File is a file that the command sees with its own content.
type File struct {
	Path    string
	Content string
	Make    bool // if there is none, create one; its directory is then read-only
	Alone   bool // nothing else is in its directory

	// Dirs are directories that no command writes to. If Path is a symbolic link to a file in one of them, the whole
	// directory is covered, and read-only.
	Dirs []string
}

// ErrDevice says that /dev/net/tun may not be opened.
var ErrDevice = errors.New("not allowed to use the TUN device")

// EndedError says that the child ended before the command ran, for example because Ctrl-C killed it.
type EndedError struct {
	Status int // as [Child.Wait] returns it
}

func (e *EndedError) Error() string {
	return fmt.Sprintf("the process that becomes the command ended with status %d", e.Status)
}

// ErrNotFound says that there is no such command: a shell's status 127.
var ErrNotFound = errors.New("command not found")

// ExecError says that the command is there, but can't be executed: a shell's status 126, or 127 if what is to execute
// it does not exist.
type ExecError struct {
	Path string
	Err  error
}

func (e *ExecError) Error() string {
	if errors.Is(e.Err, fs.ErrNotExist) {
		return fmt.Sprintf("%s: its interpreter does not exist: the one in its first line (#!), or the loader of a binary", e.Path)
	}
	return fmt.Sprintf("%s: %s", e.Path, e.Err)
}

// Unwrap returns the errno.
func (e *ExecError) Unwrap() error { return e.Err }

// Ban is what forbids namespaces.
type Ban int

// The known reasons.
const (
	ByUnknown  Ban = iota
	ByAppArmor     // kernel.apparmor_restrict_unprivileged_userns, of Ubuntu 23.10 and later
	ByClone        // kernel.unprivileged_userns_clone = 0, of Debian's kernels
	ByLimit        // user.max_user_namespaces = 0
	ByNumber       // the maximum number exists already, or 32 are nested
	BySeccomp      // a system call filter, as set by container runtimes and systemd
	ByRoot         // root in a user namespace is only for who has CAP_SETFCAP, since Linux 5.12
	ByProfile      // an AppArmor profile that pinproxy runs under
)

// ForbiddenError says that namespaces can't be created or used here.
type ForbiddenError struct {
	By  Ban
	Err error // with the step that failed
}

func (e *ForbiddenError) Error() string {
	return map[Ban]string{
		ByUnknown:  "namespaces are not allowed here",
		ByAppArmor: "AppArmor restricts unprivileged user namespaces (kernel.apparmor_restrict_unprivileged_userns = 1)",
		ByClone:    "unprivileged user namespaces are off (kernel.unprivileged_userns_clone = 0)",
		ByLimit:    "user namespaces are off (user.max_user_namespaces = 0)",
		ByNumber:   "there are too many namespaces already (see the sysctls user.max_*_namespaces)",
		BySeccomp:  "a seccomp filter forbids namespaces, as those of container runtimes and of units (RestrictNamespaces=)",
		ByRoot:     "root without CAP_SETFCAP may not have a user namespace",
		ByProfile:  "the AppArmor profile that pinproxy runs under forbids namespaces (cat /proc/self/attr/current)",
	}[e.By] + ": " + e.Err.Error()
}

// Unwrap returns the step's error.
func (e *ForbiddenError) Unwrap() error { return e.Err }
