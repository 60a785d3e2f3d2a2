package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/host"
	"pinproxy/proxy/sockdiag"
)

// cleanup undoes what a killed pinproxy left behind, and prints what it did.
func cleanup(ctx context.Context, stdout, stderr io.Writer) error {
	lock, err := host.Hold(ctx)
	if held, ok := errors.AsType[*host.HeldError](err); ok {
		return &runningError{held}
	}
	if err != nil {
		return err
	}
	done := findStranded().end()
	undone, err := lock.Cleanup(ctx, stateDir())
	line, unremoved := cleanSocket()
	err = errors.Join(err, unremoved, lock.Release())
	done = append(done, undone...)
	if line != "" {
		done = append(done, line)
	}
	for _, line := range done {
		fmt.Fprintln(stdout, line)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(stderr, "pinproxy: nothing to clean up")
	}
	return err
}

// stranded are the connections that applications have through a device that is gone, by the address that they are from.
// Nobody carries their bytes any more, and an application that only reads would never notice.
type stranded map[netip.Addr][]sockdiag.Socket

// findStranded leaves out those that know of an end already, and those that are still being made.
func findStranded() stranded {
	all := make(stranded)
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, addr := range []netip.Addr{host.Addr4, host.Addr6} {
		if slices.ContainsFunc(own, func(a net.Addr) bool { n, ok := a.(*net.IPNet); return ok && n.IP.Equal(addr.AsSlice()) }) {
			continue // that of a command whose network this is
		}
		list, _ := sockdiag.From(addr)
		for _, s := range list {
			switch s.State {
			case sockdiag.Established, sockdiag.FinWait1, sockdiag.FinWait2:
				if !s.Orphan() {
					all[addr] = append(all[addr], s)
				}
			}
		}
	}
	return all
}

// end ends them, where the kernel can. There must be policy rules, the old ones or new ones, which keep the resets on
// this host. The result is what a person would have typed.
func (all stranded) end() (done []string) {
	for _, addr := range []netip.Addr{host.Addr4, host.Addr6} {
		ended := 0
		for _, s := range all[addr] {
			if sockdiag.Destroy(s) == nil {
				ended++
			}
		}
		if ended > 0 {
			done = append(done, fmt.Sprintf("ss -tK src %s", addr))
		}
	}
	return done
}

// runningError says that what is there belongs to a running pinproxy.
type runningError struct{ by *host.HeldError }

func (e *runningError) Error() string { return "nothing is cleaned up: " + e.by.Error() }
func (e *runningError) Unwrap() error { return e.by }

func (e *runningError) Hint() string {
	if e.by.PID == 0 {
		return "stop it: it takes back its changes itself"
	}
	if monitor.IsEnding(e.by.PID) {
		return "it is ending, and takes back its changes itself within seconds"
	}
	return fmt.Sprintf("stop it with `kill %d`: it takes back its changes itself", e.by.PID)
}

// cleanSocket removes the control socket if nobody listens on it any more. It looks at the path used without
// --socket.
func cleanSocket() (line string, err error) {
	path, err := controlSocket(options{})
	if err != nil {
		return "", err
	}
	removed, err := monitor.RemoveStale(path)
	if err != nil {
		return "", fmt.Errorf("remove %s: %w", path, err)
	}
	if removed {
		line = "rm " + path
	}
	return line, nil
}
