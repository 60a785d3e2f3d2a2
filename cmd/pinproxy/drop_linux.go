package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	accounts "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/identity"
	"pinproxy/netstack/host"
	"pinproxy/netstack/link"
	"pinproxy/netstack/resolved"
	"pinproxy/proxy/sockdiag"
)

// takeOver returns the handover from the first program to the second. In the first it is empty.
func takeOver() (*handover, error) {
	h := &handover{}
	text, ok := os.LookupEnv(handoverEnv)
	if !ok {
		return h, nil
	}
	_ = os.Unsetenv(handoverEnv)
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("take over from the start: %s=%s", handoverEnv, text)
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	_, err = f.Seek(0, io.SeekStart)
	if err == nil {
		err = json.NewDecoder(f).Decode(h)
	}
	if err != nil {
		return nil, fmt.Errorf("take over from the start: %w", err)
	}
	h.done = true
	unix.CloseOnExec(h.Tun.FD)
	for _, fd := range []int{h.Namer, h.Bus.FD} {
		if fd != 0 {
			unix.CloseOnExec(fd)
		}
	}
	return h, nil
}

// open returns the device.
func (h *handover) open(c link.Config) (*link.Link, error) {
	if !h.done {
		return link.Open(c)
	}
	return link.FromFD(link.FD(h.Tun))
}

// owners returns a function that names the programs that have sockets. It also names those of other users if we had
// the capabilities at the start.
func (h *handover) owners() (func([]sockdiag.Socket) []sockdiag.Process, error) {
	if h.Namer == 0 {
		return nil, nil
	}
	n, err := sockdiag.NewNamer(h.Namer)
	if err != nil {
		return nil, err
	}
	return n.Owners, nil
}

// needed returns the capabilities that a whole-host pinproxy needs.
func needed(o options, h *handover) []int {
	if o.lowPorts(h) || !sockdiag.EndsTimeWait() { // the other way to end one takes the peer's port
		return []int{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE}
	}
	return []int{unix.CAP_NET_ADMIN}
}

// naming are the capabilities needed to see what other users' processes have open (proc_fd_permission,
// ptrace_may_access). They are almost as powerful as root, so pinproxy does not keep them: the namer does.
var naming = []int{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}

// drop gives up what pinproxy does not need. It returns nil in the second program, when nothing is left to give up.
// It returns an error before anything on the host has been changed.
func (h *handover) drop(o options) error {
	if h.done {
		return nil
	}
	id, err := h.choose(o)
	if err != nil {
		return err
	}
	dir := stateDir()
	if err := prepare(dir, id); err != nil {
		if o.user != "" {
			return err
		}
		h.Notes = append(h.Notes, err.Error())
		id = sameUser()
	}
	fd, err := openAlone(link.Config{Name: o.tun, Offload: o.offload})
	if err != nil {
		return err
	}
	h.Tun = device(fd)
	if h.Namer, err = startNamer(id); err != nil {
		return err
	}
	h.Bus = connectToBus()
	env, err := h.give()
	if err != nil {
		return err
	}
	if o.socketGroup >= 0 {
		id.Groups = append(id.Groups, o.socketGroup) // so that it may give the socket to the group
	}
	id.Caps = needed(o, h)
	id.Writes = []identity.Writable{{Path: dir, Access: identity.MakeFiles}, {Path: "/proc/sys/net", Access: identity.WriteFiles}}
	if o.socket != "" {
		id.Writes = append(id.Writes, identity.Writable{Path: filepath.Dir(o.socket), Access: identity.MakeSocket})
	}
	return dropError(id.Exec(os.Args, env))
}

// settling is how long a pinproxy may take from having its device to having the lock, and at its end from losing the
// lock to losing the device: milliseconds, unless the machine has much else to do.
const settling = 3 * time.Second

// openAlone opens the device if no other pinproxy is running, which says more than that its device exists. The device
// of one that is just starting, or was killed a moment ago, exists while nobody has the lock.
func openAlone(c link.Config) (link.FD, error) {
	for end := time.Now().Add(settling); ; time.Sleep(10 * time.Millisecond) {
		if err := alone(); err != nil {
			return link.FD{}, err
		}
		fd, err := link.OpenFD(c)
		if !mayVanish(err) || time.Now().After(end) {
			return fd, err
		}
	}
}

// mayVanish reports whether err is about a device that may be another pinproxy's. Devices of other kinds stay.
func mayVanish(err error) bool {
	return errors.Is(err, link.ErrNameTaken) && errors.Is(err, unix.EBUSY)
}

// alone returns an error if another pinproxy is running.
func alone() error {
	if r, ok, err := host.FindRunning(); err == nil && ok {
		return &host.HeldError{PID: r.PID}
	}
	return nil
}

// userError is an error about the user to become.
type userError struct{ msg, remedy string }

func (e *userError) Error() string { return e.msg }
func (e *userError) Hint() string  { return e.remedy }

// dropError adds the hint for the most common failure.
func dropError(err error) error {
	if errors.Is(err, unix.EACCES) {
		return &userError{fmt.Sprintf("%v", err), fmt.Sprintf("have everybody be allowed to execute %s: sudo chmod 755 %s", ownPath(), ownPath())}
	}
	return err
}

// choose chooses the user to become. If that is impossible, it adds a note, or fails if the user was asked for.
func (h *handover) choose(o options) (identity.Identity, error) {
	same := sameUser()
	if os.Geteuid() != 0 {
		if o.user != "" {
			return same, &userError{fmt.Sprintf("--user %s: only root can become another user", o.user), "leave out --user"}
		}
		return same, nil
	}
	name := o.user
	if name == "" {
		name = defaultUser
		if _, err := identity.Find(name); err != nil {
			name = "nobody"
		}
	}
	id, err := identity.Find(name)
	can := identity.Effective()
	why := ""
	switch {
	case errors.As(err, new(accounts.UnknownUserError)): // there may be no "nobody" either
		why = "there is no such user"
	case err != nil:
		why = err.Error()
	case !can(unix.CAP_SETUID) || !can(unix.CAP_SETGID):
		why = "that takes CAP_SETUID and CAP_SETGID"
	case !identity.Mapped(id.UID, id.GID):
		why = "this user namespace does not have it"
	default:
		return id, nil
	}
	if o.user != "" {
		return same, &userError{fmt.Sprintf("become user %s: %s", name, why), "leave out --user, or start pinproxy as that user"}
	}
	h.Notes = append(h.Notes, fmt.Sprintf("become user %s: %s", name, why))
	return same, nil
}

// sameUser is the identity that keeps the current user.
func sameUser() identity.Identity {
	return identity.Identity{Name: strconv.Itoa(os.Geteuid()), UID: -1, GID: -1}
}

// resolvedUser is the user that systemd-resolved runs as, whoever built it.
const resolvedUser = "systemd-resolve"

// connectToBus connects to D-Bus as a user from whom systemd-resolved takes orders. If it can't, a later connection
// may do. An unprivileged user needs a polkit rule to give orders. Root would do, but systemd itself obeys root too,
// so whoever has such a connection is root. Nobody else takes orders from systemd-resolved's own user.
func connectToBus() resolved.Handed {
	can := identity.Effective()
	id, err := identity.Find(resolvedUser)
	if err != nil || os.Geteuid() != 0 || !can(unix.CAP_SETUID) || !identity.Mapped(id.UID, id.GID) {
		return resolved.Handed{}
	}
	bus, _ := resolved.ConnectAs(id.UID)
	return bus
}

// prepare gives the state directory and its contents to id, if nobody but pinproxy could have put them there.
func prepare(dir string, id identity.Identity) error {
	if dir == runDir && makeRunDir(dir) != nil {
		return nil // the code that needs it reports it
	}
	if id.UID < 0 {
		return nil
	}
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // likewise
	}
	defer d.Close()
	info, err := d.Stat()
	if err != nil {
		return nil // likewise
	}
	if !passable(filepath.Dir(dir), id.UID) {
		return fmt.Errorf("give %s to user %s: it is in a directory for others", dir, id.Name)
	}
	was := owner(info)
	if was == id.UID {
		return nil
	}
	if info.Mode()&0o022 != 0 {
		return fmt.Errorf("give %s to user %s: others may write there", dir, id.Name)
	}
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil // likewise
	}
	var files []int
	defer func() {
		for _, fd := range files {
			_ = unix.Close(fd)
		}
	}()
	for _, e := range entries {
		fd, err := openOwn(int(d.Fd()), e.Name(), was)
		if err != nil {
			return fmt.Errorf("give %s to user %s: %w", dir, id.Name, err)
		}
		files = append(files, fd)
	}
	for _, fd := range append(files, int(d.Fd())) {
		err = errors.Join(err, unix.Fchownat(fd, "", id.UID, id.GID, unix.AT_EMPTY_PATH))
	}
	if err != nil {
		return fmt.Errorf("give %s to user %s: %w", dir, id.Name, err)
	}
	return nil
}

// makeRunDir makes the directory, unless there is one. Everybody may enter it, whatever the umask: the control socket has a
// mode of its own, and may be a group's.
func makeRunDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return os.Chmod(dir, 0o755)
}

// openOwn returns a descriptor of a file that is pinproxy's by its name and by its owner, who also owns the
// directory. So a link to somebody else's file, put there by another user, is not given away.
func openOwn(dir int, name string, uid int) (int, error) {
	if !strings.HasPrefix(name, "pinproxy.") {
		return 0, errors.New("others have files there")
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && int(st.Uid) != uid {
		err = errors.New("others have files there")
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// passable says whether the user may enter dir.
func passable(dir string, uid int) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return true // the code that needs it reports it
		}
		if info.Mode()&0o001 == 0 && (owner(info) != uid || info.Mode()&0o100 == 0) {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// give writes the handover, and returns the environment in which to start the second program. All of the handover's
// descriptors survive exec.
func (h *handover) give() ([]string, error) {
	fd, err := unix.MemfdCreate("handover", 0)
	if err != nil {
		return nil, fmt.Errorf("hand over: %w", err)
	}
	b, err := json.Marshal(h)
	if err == nil {
		_, err = unix.Write(fd, b)
	}
	if err != nil {
		return nil, fmt.Errorf("hand over: %w", err)
	}
	for _, fd := range []int{h.Tun.FD, h.Namer, h.Bus.FD} {
		if fd == 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return nil, fmt.Errorf("hand over: %w", err)
		}
	}
	return append(os.Environ(), handoverEnv+"="+strconv.Itoa(fd)), nil
}

// mayBindLow says whether this process may bind any port.
func mayBindLow() bool { return identity.Effective()(unix.CAP_NET_BIND_SERVICE) }
