package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Look determines what [Plan] needs to know about the network namespace of the calling thread. The device need
// not exist. No privilege is needed.
func Look(link string) (Facts, error) {
	if link == "" {
		link = Link
	}
	r, err := openRTNL()
	if err != nil {
		return Facts{}, err
	}
	defer r.close()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Facts{}, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	index := 0
	if l, err := h.LinkByName(link); err == nil {
		index = l.Attrs().Index
	}
	return look(r, link, index)
}

func look(r *rtnl, link string, index int) (f Facts, err error) {
	if f.IPv6, err = hasIPv6(r, index); err != nil {
		return f, err
	}
	if f.IPv6Off, err = ipv6Off(link); err != nil {
		return f, err
	}
	if f.LocalPorts, err = localPorts(); err != nil {
		return f, err
	}
	file, err := os.Open("/proc/sys/" + sysctlReserved)
	if err != nil {
		return f, err
	}
	defer file.Close()
	p, err := readReserved(file)
	f.Reserved = p.ranges()
	f.StrictPath = strictPath(os.DirFS("/proc/sys/net/ipv4/conf"))
	f.ReadOnly, f.PortsUnswapped = sysctlsReadOnly(), portsUnswapped()
	return f, err
}

// sysctlsReadOnly reports whether nobody can write sysctls here: many containers have a read-only /proc/sys.
func sysctlsReadOnly() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/proc/sys/net", &fs) == nil && fs.Flags&unix.ST_RDONLY != 0
}

// portsUnswapped is as in [Facts]: 4.18 is so, 5.4 is not.
func portsUnswapped() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < 5 || major == 5 && minor < 4
}

// strictPath reports whether rp_filter is strict (1) for a device. The higher of its own value and conf.all's counts.
func strictPath(conf fs.FS) bool {
	value := func(dev string) string {
		b, _ := fs.ReadFile(conf, dev+"/rp_filter")
		return strings.TrimSpace(string(b))
	}
	all := value("all")
	list, _ := fs.ReadDir(conf, ".")
	return slices.ContainsFunc(list, func(d fs.DirEntry) bool {
		return d.Name() != "all" && d.Name() != "lo" && max(all, value(d.Name())) == "1"
	})
}

// hasIPv6 reports whether the host has IPv6 of its own. If it has not, an address of ours would make
// getaddrinfo(3) with AI_ADDRCONFIG return unreachable addresses.
func hasIPv6(r *rtnl, link int) (bool, error) {
	found := false
	err := r.dumpRoutes(v6, 0, func(info routeInfo) {
		found = found || info.protocol != Protocol && info.meansIPv6(link)
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return found, err
}

// ipv6Off reads the device's disable_ipv6, or the default for new devices.
func ipv6Off(link string) (bool, error) {
	for _, name := range []string{link, "default"} {
		b, err := os.ReadFile("/proc/sys/" + disableIPv6(name))
		if err == nil {
			return strings.TrimSpace(string(b)) == "1", nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, nil // no IPv6 in this kernel
}

func localPorts() (PortRange, error) {
	const path = "/proc/sys/net/ipv4/ip_local_port_range"
	b, err := os.ReadFile(path)
	if err != nil {
		return PortRange{}, err
	}
	fields := strings.Fields(string(b))
	if len(fields) != 2 {
		return PortRange{}, fmt.Errorf("read %s: got %q", path, b)
	}
	first, err := strconv.ParseUint(fields[0], 10, 16)
	if err != nil {
		return PortRange{}, fmt.Errorf("read %s: %w", path, err)
	}
	last, err := strconv.ParseUint(fields[1], 10, 16)
	if err != nil {
		return PortRange{}, fmt.Errorf("read %s: %w", path, err)
	}
	return PortRange{uint16(first), uint16(last)}, nil
}
