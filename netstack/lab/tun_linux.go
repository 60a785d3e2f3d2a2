package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// ShareTUN lets all users open /dev/net/tun, if it exists, in this process's mount namespace until the network is
// closed, as on ordinary machines. If that takes a separate device node, it needs root.
func (n *Net) ShareTUN() {
	n.helper()
	n.check("share "+tunDevice, n.shareTUN())
}

func (n *Net) shareTUN() error {
	info, err := os.Stat(tunDevice)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there is nothing to share
	}
	if err != nil || info.Mode().Perm()&0o006 == 0o006 {
		return err
	}
	if err := private(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(n.dir, "dev.*")
	if err != nil {
		return err
	}
	if err := unix.Mount("lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	n.atClose(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	node := filepath.Join(dir, "tun")
	if err := errors.Join(unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 200))), os.Chmod(node, 0o666)); err != nil {
		return fmt.Errorf("make a device: %w", err)
	}
	if err := unix.Mount(node, tunDevice, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the device: %w", err)
	}
	n.atClose(func() error { return unix.Unmount(tunDevice, unix.MNT_DETACH) })
	return nil
}
