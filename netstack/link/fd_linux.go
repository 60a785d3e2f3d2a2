package link

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// FD is an open TUN device that nobody reads yet. Its descriptor may go to another process in another network
// namespace; the device stays in the namespace where it was created.
type FD struct {
	FD      int    // closed on exec
	Name    string // the device's name
	Offload bool   // created with segmentation and checksum offload
}

// MTU is the MTU to set on the kernel's side, in bytes.
func (f FD) MTU() int {
	if f.Offload {
		return offloadMTU
	}
	return plainMTU
}

// OpenFD creates the device as [Open] does, for another process to read. The caller closes the descriptor.
func OpenFD(c Config) (FD, error) {
	if c.Name == "" {
		c.Name = Default
	}
	if err := checkName(c.Name); err != nil {
		return FD{}, err
	}
	if c.Offload {
		fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return FD{}, openError(err)
		}
		if c.Index != 0 {
			_ = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, c.Index) // fails only for a descriptor that is a device already
		}
		name, err := setVnet(fd, c.Name)
		if err == nil {
			return FD{fd, name, true}, nil
		}
		_ = unix.Close(fd)
		if !errors.Is(err, errors.ErrUnsupported) {
			return FD{}, err
		}
	}
	fd, name, err := makePlain(c.Name)
	return FD{fd, name, false}, err
}

// FromFD takes over a device that [OpenFD] has created in any process. Close closes the descriptor. If FromFD fails,
// the caller still owns the descriptor.
func FromFD(f FD) (*Link, error) {
	if f.Offload {
		return newVnet(f.FD, f.Name)
	}
	return newPlain(f.FD, f.Name)
}

// Leave makes the device persist, without a carrier, after its descriptor is closed, until somebody deletes it or its
// network namespace ends. Without Leave, closing the descriptor waits until the device is deleted, which takes the
// kernel many milliseconds.
func (f FD) Leave() error {
	if err := unix.IoctlSetInt(f.FD, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("leave tun %q: %w", f.Name, err)
	}
	return nil
}
