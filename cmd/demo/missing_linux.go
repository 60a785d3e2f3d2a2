package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// forbidden is the machine's refusal to let us make namespaces.
type forbidden struct{ error }

func (f forbidden) Unwrap() error { return f.error }

const tunDevice = "/dev/net/tun"

// openTUN checks whether we can have the TUN device. It does not create anything.
func openTUN() error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: tunDevice, Err: err}
	}
	return unix.Close(fd)
}

// hintFor says what to do if the machine lacks something, or denies it to us.
func hintFor(err error) string {
	var path *fs.PathError
	switch {
	case errors.As(err, &path) && path.Path == tunDevice:
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return "the kernel's TUN driver is missing: sudo modprobe tun; in a container, start it with --device " + tunDevice
		}
		return "run it as root: sudo make demo; in a container, start it with --device " + tunDevice
	case errors.As(err, new(forbidden)) && os.Getuid() == 0:
		return "root may not make namespaces here; in a container, start it with --privileged"
	case errors.As(err, new(forbidden)):
		return "run it as root: sudo make demo" + userNamespaces()
	}
	return ""
}

// userNamespaces names the setting that keeps ordinary users from making namespaces.
func userNamespaces() string {
	for _, s := range []struct{ key, off, on string }{
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"}, // Ubuntu since 23.10
		{"kernel.unprivileged_userns_clone", "0", "1"},             // Debian before 11, hardened kernels
		{"user.max_user_namespaces", "0", "10000"},                 // as Red Hat advises
	} {
		now, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(s.key, ".", "/"))
		if err == nil && strings.TrimSpace(string(now)) == s.off {
			return fmt.Sprintf(", or allow user namespaces: sudo sysctl %s=%s", s.key, s.on)
		}
	}
	return ""
}
