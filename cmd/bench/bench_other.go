//go:build !linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

func bench(context.Context, options, io.Writer, io.Writer) error {
	return fmt.Errorf("make namespaces: %w", errors.ErrUnsupported)
}

func agentMain(_ io.Reader, _, stderr io.Writer) int { return tunMain(stderr) }

func tunMain(stderr io.Writer) int {
	fmt.Fprintln(stderr, "bench: error: it needs Linux")
	return 1
}
