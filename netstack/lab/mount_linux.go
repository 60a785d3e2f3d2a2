package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ResolvConf makes all programs in this process's mount namespace, on any host, ask these name servers and know no
// host except localhost: /etc/resolv.conf, /etc/hosts and /etc/nsswitch.conf are covered until the network is
// closed. Tests that call it must not run in parallel.
func (n *Net) ResolvConf(nameservers ...string) {
	n.helper()
	conf := "options timeout:1\n"
	for _, s := range nameservers {
		conf += "nameserver " + s + "\n"
	}
	n.Cover("/etc/resolv.conf", conf)
	n.Cover("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
	n.Cover("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
}

// Cover makes the file at path read as content in this process's mount namespace until the network is closed. The
// file must exist unless it is nsswitch.conf.
func (n *Net) Cover(path, content string) {
	n.helper()
	err := n.cover(path, content)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(path) == "nsswitch.conf" {
		return // musl has none, and behaves as wanted without it
	}
	n.check("cover "+path, err)
}

// ReadOnlyDir creates an empty directory that no user can write to, not even root.
func (n *Net) ReadOnlyDir() string {
	n.helper()
	dir, err := n.readOnlyDir()
	n.check("make a read-only directory", err)
	return dir
}

func (n *Net) readOnlyDir() (string, error) {
	if err := private(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(n.dir, "read-only.*")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("lab", dir, "tmpfs", unix.MS_RDONLY, "mode=755"); err != nil {
		return "", fmt.Errorf("mount a tmpfs: %w", err)
	}
	n.atClose(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	return dir, nil
}

func (n *Net) cover(path, content string) error {
	if err := private(); err != nil { // never in the mount namespace of others
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(n.dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := unix.Mount(f.Name(), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	n.atClose(func() error {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("uncover %s: %w", path, err)
		}
		return nil
	})
	return nil
}
