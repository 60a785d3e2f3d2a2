package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Namespace returns a name for the network namespace of the calling thread, for files in a directory that all
// namespaces share. The initial namespace is "". Any other is named by its cookie, which no other namespace
// gets before the next boot. No privilege is needed. Kernels before 5.14 have no cookies (SO_NETNS_COOKIE); the
// name is then the inode number, which may be reused.
func Namespace() (string, error) {
	initial, inode, err := initialNamespace()
	if err != nil || initial {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("name network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return "i" + strconv.FormatUint(inode, 10), nil
	}
	if err != nil {
		return "", fmt.Errorf("name network namespace: %w", err)
	}
	return strconv.FormatUint(cookie, 10), nil
}

// initialInode is NET_NS_INIT_INO of linux/nsfs.h. Kernels before 6.17 assign an arbitrary number.
const initialInode = 0xeffffff9

// initialNamespace reports whether the calling thread is in the initial network namespace. The initial cookie
// is not always the same, and looking at process 1 may need permission. But since the initial inode number is
// fixed, the numbers of all other namespaces are above it. Before that, there are sysctls that only the initial
// namespace has (net_core_table in net/core/sysctl_net_core.c).
func initialNamespace() (initial bool, inode uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return false, 0, &os.PathError{Op: "stat", Path: "/proc/thread-self/ns/net", Err: err}
	}
	if st.Ino == initialInode {
		return true, st.Ino, nil
	}
	_, err = os.Stat("/proc/sys/net/core/netdev_budget")
	if errors.Is(err, fs.ErrNotExist) {
		return false, st.Ino, nil
	}
	return err == nil, st.Ino, err
}
