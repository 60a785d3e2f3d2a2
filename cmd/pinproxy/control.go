package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	osuser "os/user"
	"strconv"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
)

// controlSocket returns the path of the control socket: from --socket, or next to the state file.
func controlSocket(o options) (string, error) {
	if o.socket != "" {
		return o.socket, nil
	}
	namespace, err := host.Namespace()
	if err != nil {
		return "", err
	}
	return host.SocketFile(stateDir(), namespace), nil
}

// groupOf returns the number of a group, or -1 for "".
func groupOf(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if g, err := osuser.LookupGroup(name); err == nil {
		name = g.Gid
	}
	gid, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return -1, &usageError{fmt.Sprintf("--socket-group %s: there is no such group", name), "sudo groupadd --system " + terminal.Quote(name)}
	}
	return int(gid), nil
}

// openControl opens the control socket if possible. Everything else works without it.
func openControl(ctx context.Context, o options, log *slog.Logger) (l net.Listener, path string, remove func() error) {
	path, err := controlSocket(o)
	if err == nil {
		l, remove, err = monitor.Listen(ctx, path)
	}
	if err != nil {
		log.Warn("no control socket: check and status can't ask this pinproxy", "err", err.Error())
		return nil, "", nil
	}
	if err := monitor.Share(path, o.socketGroup); err != nil {
		log.Warn("the control socket is for its user and root alone", "err", err.Error())
	}
	return l, path, remove
}
