package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"pinproxy/netstack/host"
)

// cleanup undoes what a killed pinproxy left behind, and prints what it did.
func cleanup(ctx context.Context, stdout, stderr io.Writer) error {
	done, err := host.Cleanup(ctx, stateDir())
	if held, ok := errors.AsType[*host.HeldError](err); ok {
		return &runningError{held}
	}
	if _, damaged := errors.AsType[*host.DamagedError](err); err == nil || damaged { // so no pinproxy is running
		line, unremoved := cleanSocket()
		if line != "" {
			done = append(done, line)
		}
		err = errors.Join(err, unremoved)
	}
	for _, line := range done {
		fmt.Fprintln(stdout, line)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(stderr, "pinproxy: nothing to clean up")
	}
	return err
}

// runningError says that what is there belongs to a running pinproxy.
type runningError struct{ by *host.HeldError }

func (e *runningError) Error() string { return "nothing is cleaned up: " + e.by.Error() }
func (e *runningError) Unwrap() error { return e.by }

func (e *runningError) hint() string {
	if e.by.PID == 0 {
		return "stop it: it takes back its changes itself"
	}
	if isEnding(e.by.PID) {
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
	removed, err := removeStale(path)
	if err != nil {
		return "", fmt.Errorf("remove %s: %w", path, err)
	}
	if removed {
		line = "rm " + path
	}
	return line, nil
}
