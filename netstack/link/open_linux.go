package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unicode"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
)

const tunDevice = "/dev/net/tun"

// Open creates the TUN device. It needs CAP_NET_ADMIN in the network namespace and permission to open /dev/net/tun.
// The device is down and has no address.
func Open(c Config) (*Link, error) {
	if c.Name == "" {
		c.Name = Default
	}
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	if c.Offload {
		l, err := openVnet(c.Name)
		if err == nil || !errors.Is(err, errors.ErrUnsupported) {
			return l, err
		}
	}
	return openPlain(c.Name)
}

// checkName refuses names that the kernel would refuse (dev_valid_name), and names that water would silently cut
// short or the kernel silently fill in ("tun%d").
func checkName(name string) error {
	if len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/:%") || strings.ContainsFunc(name, unicode.IsSpace) {
		return fmt.Errorf("open tun %q: invalid device name: up to %d bytes without blank, slash, colon or percent sign", name, unix.IFNAMSIZ-1)
	}
	return nil
}

// openVnet opens the device with IFF_VNET_HDR. An error that is errors.ErrUnsupported means that the kernel offers no
// offloads.
func openVnet(name string) (*Link, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(err)
	}
	l, err := attachVnet(fd, name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return l, nil
}

func attachVnet(fd int, name string) (*Link, error) {
	name, err := setVnet(fd, name)
	if err != nil {
		return nil, err
	}
	return newVnet(fd, name)
}

// setVnet turns fd, which is /dev/net/tun, into a device with offloads and returns the device's name.
func setVnet(fd int, name string) (string, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return "", fmt.Errorf("open tun %q: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return "", fmt.Errorf("open tun %q with a vnet header: %w (%w)", name, errors.ErrUnsupported, err)
		}
		return "", setiffError(name, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeaderSize); err != nil {
		return "", fmt.Errorf("set vnet header size of tun %q: %w (%w)", name, errors.ErrUnsupported, err)
	}
	// TUNSETOFFLOAD takes its argument by value.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return "", fmt.Errorf("set offloads of tun %q: %w (%w)", name, errors.ErrUnsupported, err)
	}
	return ifr.Name(), nil
}

// newVnet takes over a device that setVnet has set up.
func newVnet(fd int, name string) (*Link, error) {
	l := &Link{name: name, mtu: offloadMTU, offload: true, failed: make(chan error, 1)}
	ep, err := newVnetEndpoint(fd, offloadMTU, l.fail)
	if err != nil {
		return nil, fmt.Errorf("open tun %q: %w", name, err)
	}
	l.endpoint, l.close = ep, ep.closeDevice
	return l, nil
}

// openPlain opens the device with water, without a header.
func openPlain(name string) (*Link, error) {
	fd, name, err := makePlain(name)
	if err != nil {
		return nil, err
	}
	l, err := newPlain(fd, name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return l, nil
}

// makePlain creates a device without a header and returns its descriptor and name.
func makePlain(name string) (int, string, error) {
	dev, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		var errno unix.Errno
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EPERM) {
			return -1, "", openError(err)
		} else if errors.As(err, &errno) {
			return -1, "", setiffError(name, errno)
		}
		return -1, "", fmt.Errorf("open tun %q: %w", name, err)
	}
	// water returns an *os.File, whose finalizer closes the descriptor as soon as only its number is in use. So keep
	// a duplicate of our own.
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return -1, "", fmt.Errorf("open tun %q: water returned a %T", name, dev.ReadWriteCloser)
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = file.Close()
	if err != nil {
		return -1, "", fmt.Errorf("duplicate the descriptor of tun %q: %w", name, err)
	}
	return fd, dev.Name(), nil
}

// newPlain takes over a device that makePlain has created.
func newPlain(fd int, name string) (*Link, error) {
	l := &Link{name: name, mtu: plainMTU, failed: make(chan error, 1)}
	// fdbased sets the descriptor non-blocking, does not own it, and reports a dead read loop only through
	// ClosedFunc.
	ep, err := fdbased.New(&fdbased.Options{
		FDs: []int{fd},
		MTU: plainMTU,
		ClosedFunc: func(err tcpip.Error) {
			if err != nil {
				l.fail(fmt.Errorf("read tun %q: %v", l.name, err))
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open tun %q: %w", name, err)
	}
	l.endpoint, l.close = ep, func() error { return unix.Close(fd) }
	return l, nil
}

// openError explains why /dev/net/tun could not be opened.
func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open %s: %w: %w", tunDevice, ErrNoTUN, err)
	}
	return fmt.Errorf("open %s: %w", tunDevice, err)
}

// setiffError explains why the device could not be created (tun_set_iff).
func setiffError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("make tun %q: %w by another process: %w", name, ErrNameTaken, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("make tun %q: %w by a device that is no TUN: %w", name, ErrNameTaken, err)
	}
	return fmt.Errorf("make tun %q: %w", name, err)
}
