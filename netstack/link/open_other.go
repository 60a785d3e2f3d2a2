//go:build !linux

package link

import (
	"errors"
	"fmt"
	"runtime"
)

// Open is for Linux: capturing by policy routing is, too.
func Open(Config) (*Link, error) {
	return nil, fmt.Errorf("open tun: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
