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
	for _, line := range done {
		fmt.Fprintln(stdout, line)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(stderr, "pinproxy: nothing to clean up")
	}
	return err
}
