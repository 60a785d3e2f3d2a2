package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
)

// status prints what the running pinproxy says about itself.
func status(ctx context.Context, o options, stdout io.Writer) error {
	if o.watch {
		return watchStatus(ctx, o, stdout)
	}
	s, err := askStatus(ctx, o)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(stdout, s, "  ")
	}
	width, _ := terminal.Dimensions(stdout)
	return printText(stdout, s.Text(width))
}

// askStatus asks the running pinproxy.
func askStatus(ctx context.Context, o options) (s monitor.Status, err error) {
	i, _, err := monitor.Locate(o.socket, o.command)
	switch {
	case err != nil:
		return s, err
	case i == nil:
		return s, monitor.NotRunningError{}
	case i.Path == "":
		return s, fmt.Errorf("a pinproxy is running, pid %d, but can't %w", i.PID, i.Err)
	case i.Err != nil:
		return s, i.Err
	}
	err = i.Ask(ctx, "/status", nil, &s)
	s.PID = cmp.Or(i.PID, s.PID) // its own may be from another PID namespace
	return s, err
}
