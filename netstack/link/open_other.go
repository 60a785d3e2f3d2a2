//go:build !linux

package link

import (
	"errors"
	"fmt"
	"runtime"
)

// Open works only on Linux, and so does capturing by policy routing.
func Open(Config) (*Link, error) {
	return nil, fmt.Errorf("open tun: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
