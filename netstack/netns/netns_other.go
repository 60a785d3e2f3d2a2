//go:build !linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"pinproxy/netstack/link"
)

// Child is a command in namespaces of its own. It exists only on Linux.
type Child struct{}

// Main does nothing.
func Main() {}

// Start returns errors.ErrUnsupported.
func Start(context.Context, Config) (*Child, error) {
	return nil, fmt.Errorf("make namespaces on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Link returns nil.
func (*Child) Link() *link.Link { return nil }

// Diag returns -1.
func (*Child) Diag() int { return -1 }

// Warnings returns nothing.
func (*Child) Warnings() []error { return nil }

// Exec returns errors.ErrUnsupported.
func (*Child) Exec() error { return errors.ErrUnsupported }

// Wait returns 1.
func (*Child) Wait() int { return 1 }

// Drain does nothing.
func (*Child) Drain(context.Context) {}

// Hurry returns a context that never ends.
func (*Child) Hurry() context.Context { return context.Background() }

// Close does nothing.
func (*Child) Close() error { return nil }

// Leave does nothing.
func (*Child) Leave() error { return nil }

func mayExecute(string) error { return nil }
