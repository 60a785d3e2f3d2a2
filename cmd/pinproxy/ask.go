package main

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
	"time"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/host"
)

// glance is how long a pinproxy may take to answer whether it is there.
const glance = 2 * time.Second

// instance is the running pinproxy as seen from outside.
type instance struct {
	host.Running
	path  string        // path of its control socket
	again string        // what to type after "pinproxy" to ask once more
	about monitor.About // its PID is from its own PID namespace; Running's is from ours
	err   error         // why the control socket does not answer
}

// notRunningError says that no pinproxy is running.
type notRunningError struct{}

func (notRunningError) Error() string { return "no pinproxy is running in this network namespace" }
func (notRunningError) hint() string  { return "sudo pinproxy --rule 'google.co.uk:443=63999'" }

// findInstance finds the running pinproxy and asks it who it is. It returns nil without an error if there is none.
func findInstance(ctx context.Context, o options) (*instance, error) {
	i, ok, err := locateInstance(o)
	if i == nil || err != nil || i.err != nil {
		return i, err
	}
	if i.err = i.ask(ctx, "/about", nil, &i.about); !ok && i.err != nil {
		return nil, i.err
	}
	return i, nil
}

// locateInstance finds the running pinproxy, and asks it nothing. ok is whether it runs in this network namespace.
func locateInstance(o options) (i *instance, ok bool, err error) {
	running, ok, err := host.FindRunning()
	if err != nil {
		return nil, false, err
	}
	if !ok && o.socket == "" {
		return nil, false, nil
	}
	i = &instance{Running: running, path: cmp.Or(o.socket, running.Socket), again: o.command}
	if o.command == "check" {
		i.again += " …"
	}
	switch {
	case i.path == "" && i.Silent:
		i.err = errors.New("ask for its control socket: it does not answer")
	case i.path == "":
		i.err = errors.New("ask it: it has no control socket")
	}
	return i, ok, nil
}

// ask asks the control socket. The error says why there is no answer.
func (i *instance) ask(ctx context.Context, resource string, query url.Values, answer any) error {
	if err := monitor.Ask(ctx, i.path, resource, query, answer); err != nil {
		return &askError{i.path, i.lostFrom(), i.again, err}
	}
	return nil
}

// lostFrom returns the pid of the pinproxy that says where it listens, if this is where it is asked.
func (i *instance) lostFrom() int {
	if i.path != i.Socket {
		return 0
	}
	return i.PID
}

// isEnding says whether the pinproxy with this pid has been told to end and has not ended yet. Whoever holds the lock
// may not answer, and nothing depends on it but a hint.
func isEnding(pid int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), glance)
	defer cancel()
	i, err := findInstance(ctx, options{})
	return err == nil && i != nil && i.err == nil && i.PID == pid && i.about.Ending
}

// destination asks what would happen to a connection.
func (i *instance) destination(ctx context.Context, dst netip.AddrPort, name, rule string) (d monitor.Destination, err error) {
	return d, i.ask(ctx, "/destination", url.Values{"dst": {dst.String()}, "name": {name}, "rule": {rule}}, &d)
}

// whose says who may use the control socket at path: see share.
func whose(path string) string {
	if info, err := os.Lstat(path); err == nil && info.Mode()&0o060 != 0 {
		return "its user's, its group's and root's"
	}
	return "its user's and root's"
}

// askError says that the control socket does not answer.
type askError struct {
	path  string
	pid   int // of the pinproxy that says it listens there, if one does
	again string
	err   error
}

func (e *askError) Error() string { return fmt.Sprintf("ask %s: %v", e.path, cause(e.err)) }
func (e *askError) Unwrap() error { return e.err }

func (e *askError) hint() string {
	switch {
	case errors.Is(e.err, fs.ErrPermission):
		return fmt.Sprintf("the control socket is %s: sudo pinproxy %s", whose(e.path), e.again)
	case e.pid != 0 && (errors.Is(e.err, fs.ErrNotExist) || errors.Is(e.err, syscall.ECONNREFUSED)):
		return fmt.Sprintf("if the socket was deleted, a restart of pid %d makes it again; if that is in a container, sudo nsenter -t %[1]d -m pinproxy %s", e.pid, e.again)
	case errors.Is(e.err, fs.ErrNotExist), errors.Is(e.err, syscall.ECONNREFUSED):
		return "say by --socket where the running pinproxy listens"
	}
	return ""
}
