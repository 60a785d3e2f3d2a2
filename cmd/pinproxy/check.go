package main

import (
	"context"
	"io"

	"pinproxy/cmd/pinproxy/check"
)

// checkTarget prints what would happen to a connection to o.target. The status is 0 if the connection would leave from
// its pin now.
func checkTarget(ctx context.Context, o options, stdout io.Writer) (status int, err error) {
	r, err := check.Run(ctx, check.Config{
		Target: o.target, Rules: o.set, Link: o.tun, Socket: o.socket, Connect: o.connect, DialTimeout: o.dialTimeout,
	})
	switch {
	case err != nil:
	case o.json:
		err = printJSON(stdout, r, "  ")
	default:
		err = printText(stdout, r.Text())
	}
	if err != nil || !r.Pinned {
		return exitFailed, err
	}
	return exitOK, nil
}
