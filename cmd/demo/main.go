// Command demo shows in some seconds, on any Linux machine, what pinproxy is for.
//
//	demo PINPROXY
//
// It makes a network of its own out of namespaces, with a firewall in the middle that passes one source port. It
// makes requests through the firewall, first without and then with the given pinproxy binary. It uses curl or, if
// there is none, its own few lines of HTTPS client:
//
//	demo get [-4|-6] [-m SECONDS] URL
//
// What it prints is a transcript: the commands as they were run and everything that they printed. Its exit status is
// 0 only if every one of them did what it should.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds the whole demo, which takes some 4 seconds on an otherwise idle machine. Anything that ignores the
// limit is ended by force a little later.
const limit = 2 * time.Minute

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) > 1 && args[0] == "get":
		if err := get(ctx, args[1:], stdout); err != nil {
			fmt.Fprintf(stderr, "get: %v\n", err)
			return 1
		}
		return 0
	case len(args) != 1:
		fmt.Fprintln(stderr, "usage: demo PINPROXY\n       demo get [-4|-6] [-m SECONDS] URL")
		return 2
	}
	if err := show(ctx, args[0], stdout); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(stderr, "\ndemo: error: %v\n", err)
		if hint := hintFor(err); hint != "" {
			fmt.Fprintf(stderr, "demo: hint: %s\n", hint)
		}
		return 1
	}
	return 0
}
