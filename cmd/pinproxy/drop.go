package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	accounts "os/user"
	"strconv"
	"syscall"

	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/netstack/resolved"
)

// A whole-host pinproxy that is started as root, or with more capabilities than it needs, does as root only what
// nobody else may do. It then starts itself anew, in the same process, without what it no longer needs:
//
//	as root   parse the command line, make the directory for state, make the device, fork the namer,
//	          connect to D-Bus as the user of systemd-resolved
//	          │ exec: same process, arguments, environment, descriptors
//	          ▼
//	as user   everything else, with CAP_NET_ADMIN, and CAP_NET_BIND_SERVICE where a pin may need it
//
// Why by exec, see package identity. Root never runs code that reads packets, DNS answers or requests. The result is the
// same as that of a unit with User= and AmbientCapabilities=.

// handoverEnv names the descriptor with the handover from the first program to the second.
const handoverEnv = "PINPROXY_HANDOVER"

// defaultUser is the user to become if --user is not given. The package creates this user.
const defaultUser = "pinproxy"

// handover holds what the second program can't get by itself.
type handover struct {
	Tun   device            // made by the first
	Bus   resolved.Handed   // for systemd-resolved
	Namer int               // socket of the namer; 0: there is none
	Rules map[string]string // the rules files, which may be pipes or readable only by root
	Notes []string          // what could not be given up, and why

	done bool // this is the second program
}

// device is link.FD, for JSON and for other systems.
type device struct {
	FD      int
	Name    string
	Offload bool
}

// knownUser refuses a name of --user that nobody has. A number needs no name.
func knownUser(name string) (string, error) {
	if _, err := strconv.ParseUint(name, 10, 31); name == "" || err == nil {
		return name, nil
	}
	_, err := accounts.Lookup(name)
	if errors.As(err, new(accounts.UnknownUserError)) {
		return "", &usageError{fmt.Sprintf("--user %s: there is no such user", shown(name)), "sudo useradd --system " + terminal.Quote(name)}
	}
	return name, nil // any other failure is for whoever becomes the user
}

// text returns the rules file at path as it was at the start.
func (h *handover) text(path string) (string, error) {
	if text, ok := h.Rules[path]; ok {
		return text, nil
	}
	text, err := readText(path)
	if err != nil {
		return "", err
	}
	if h.Rules == nil {
		h.Rules = map[string]string{}
	}
	h.Rules[path] = text
	return text, nil
}

// unreadable warns of rules files that can't be read again.
func (h *handover) unreadable() (warnings []string) {
	for path := range h.Rules {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO may have no writer any more
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("rules file %s can't be read again, so SIGHUP will fail: %v", path, towards(terminal.Cause(err))))
			continue
		}
		_ = f.Close()
	}
	return warnings
}

// lowPorts says whether a port that needs CAP_NET_BIND_SERVICE may be wanted: by a pin or the page now, or by a
// rules file when it is reread.
func (o options) lowPorts(h *handover) bool {
	first := host.LowestUnprivileged()
	if _, port, err := net.SplitHostPort(o.http); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && uint16(n) < first {
			return true
		}
	}
	ports := o.set.PinPorts().Ranges()
	return len(h.Rules) > 0 || len(ports) > 0 && ports[0].First < first
}
