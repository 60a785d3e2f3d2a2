//go:build !linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

func show(context.Context, string, io.Writer) error {
	return fmt.Errorf("make namespaces: %w", errors.ErrUnsupported)
}

func hintFor(error) string { return "the demo needs Linux" }
