package main

import (
	"context"
	"fmt"
	"io"

	"pinproxy/netstack/host"
)

// cleanup undoes what a killed pinproxy left behind, and prints it.
func cleanup(ctx context.Context, stdout, stderr io.Writer) error {
	done, err := host.Cleanup(ctx, stateDir())
	if err == nil { // so nobody is running
		var line string
		if line, err = cleanSocket(); line != "" {
			done = append(done, line)
		}
	}
	for _, line := range done {
		fmt.Fprintln(stdout, line)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(stderr, "pinproxy: nothing to clean up")
	}
	return err
}

// cleanSocket removes the control socket that nobody listens on any more, where it is without --socket.
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
