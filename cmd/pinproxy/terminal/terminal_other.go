//go:build !linux

package terminal

import (
	"io"
	"os"
)

// Dimensions returns 0: pinproxy runs on Linux, and status asks one on the same host.
func Dimensions(io.Writer) (width, height int) { return 0, 0 }

type TTY struct{ Resized, Stopped chan os.Signal }

func OpenTTY() *TTY { return new(TTY) }
func (*TTY) Stop()  {}
func (*TTY) Close() {}
