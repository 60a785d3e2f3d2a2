//go:build !linux

package main

import (
	"io"
	"os"
)

// terminalSize returns 0: pinproxy runs on Linux, and status asks one on the same host.
func terminalSize(io.Writer) (width, height int) { return 0, 0 }

type tty struct{ resized, stopped chan os.Signal }

func openTTY() *tty { return new(tty) }
func (*tty) stop()  {}
func (*tty) close() {}
