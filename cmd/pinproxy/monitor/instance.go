package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"syscall"

	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
)

// Instance is the running pinproxy as seen from outside.
type Instance struct {
	host.Running
	Path  string // path of its control socket
	About About  // its PID is from its own PID namespace; Running's is from ours
	Err   error  // why the control socket does not answer

	again string // what to type after "pinproxy" to ask once more
}

// NotRunningError says that no pinproxy is running.
type NotRunningError struct{}

func (NotRunningError) Error() string { return "no pinproxy is running in this network namespace" }

// Hint says how to start one.
func (NotRunningError) Hint() string { return "sudo pinproxy --rule 'google.co.uk:443=63999'" }

// Find finds the running pinproxy and asks it who it is. It returns nil without an error if there is none. For socket
// and again see Locate.
func Find(ctx context.Context, socket, again string) (*Instance, error) {
	i, ok, err := Locate(socket, again)
	if i == nil || err != nil || i.Err != nil {
		return i, err
	}
	if i.Err = i.Ask(ctx, "/about", nil, &i.About); !ok && i.Err != nil {
		return nil, i.Err
	}
	return i, nil
}

// Locate finds the running pinproxy, and asks it nothing. It returns nil without an error if there is none. ok is
// whether it runs in this network namespace. socket is the control socket to ask on, or "" for the one that the running
// pinproxy says. again is what to type after "pinproxy" to ask once more, for hints.
func Locate(socket, again string) (i *Instance, ok bool, err error) {
	running, ok, err := host.FindRunning()
	if err != nil {
		return nil, false, err
	}
	if !ok && socket == "" {
		return nil, false, nil
	}
	i = &Instance{Running: running, Path: cmp.Or(socket, running.Socket), again: again}
	switch {
	case i.Path == "" && i.Silent:
		i.Err = errors.New("ask for its control socket: it does not answer")
	case i.Path == "":
		i.Err = errors.New("ask it: it has no control socket")
	}
	return i, ok, nil
}

// Ask asks the control socket. The error, an *AskError, says why there is no answer.
func (i *Instance) Ask(ctx context.Context, resource string, query url.Values, answer any) error {
	if err := ask(ctx, i.Path, resource, query, answer); err != nil {
		return &AskError{i.Path, i.lostFrom(), i.again, err}
	}
	return nil
}

// lostFrom returns the pid of the pinproxy that says where it listens, if this is where it is asked.
func (i *Instance) lostFrom() int {
	if i.Path != i.Socket {
		return 0
	}
	return i.PID
}

// IsEnding says whether the pinproxy with this pid has been told to end and has not ended yet. Whoever holds the lock
// may not answer, and nothing depends on it but a hint.
func IsEnding(pid int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), controlRead)
	defer cancel()
	i, err := Find(ctx, "", "")
	return err == nil && i != nil && i.Err == nil && i.PID == pid && i.About.Ending
}

// Destination asks what would happen to a connection.
func (i *Instance) Destination(ctx context.Context, dst netip.AddrPort, name, rule string) (d Destination, err error) {
	return d, i.Ask(ctx, "/destination", url.Values{"dst": {dst.String()}, "name": {name}, "rule": {rule}}, &d)
}

// whose says who may use the control socket at path: see Share.
func whose(path string) string {
	if info, err := os.Lstat(path); err == nil && info.Mode()&0o060 != 0 {
		return "its user's, its group's and root's"
	}
	return "its user's and root's"
}

// AskError says that the control socket does not answer.
type AskError struct {
	Path  string
	PID   int    // of the pinproxy that says it listens there, if one does
	Again string // what to type after "pinproxy" to ask once more
	Err   error
}

func (e *AskError) Error() string { return fmt.Sprintf("ask %s: %v", e.Path, terminal.Cause(e.Err)) }
func (e *AskError) Unwrap() error { return e.Err }

// Hint says what would help, if anything.
func (e *AskError) Hint() string {
	switch {
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("the control socket is %s: sudo pinproxy %s", whose(e.Path), e.Again)
	case e.PID != 0 && (errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, syscall.ECONNREFUSED)):
		return fmt.Sprintf("if the socket was deleted, a restart of pid %d makes it again; if that is in a container, sudo nsenter -t %[1]d -m pinproxy %s", e.PID, e.Again)
	case errors.Is(e.Err, fs.ErrNotExist), errors.Is(e.Err, syscall.ECONNREFUSED):
		return "say by --socket where the running pinproxy listens; if that is in another container, or outside of this one, ask there"
	}
	return ""
}
