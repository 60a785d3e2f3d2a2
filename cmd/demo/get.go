package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// get prints what is at a URL: the little of curl that the demo needs. -m limits it to that many seconds, and -4 or
// -6 restricts it to one family.
func get(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("get", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	four := fs.Bool("4", false, "")
	six := fs.Bool("6", false, "")
	seconds := fs.Int("m", 10, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("give one URL")
	}
	network := "tcp"
	switch {
	case *four:
		network = "tcp4"
	case *six:
		network = "tcp6"
	}

	ctx, cancel := context.WithTimeout(ctx, time.Duration(*seconds)*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fs.Arg(0), nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(stdout, response.Body); err != nil {
		return fmt.Errorf("read %s: %w", fs.Arg(0), err)
	}
	return nil
}
