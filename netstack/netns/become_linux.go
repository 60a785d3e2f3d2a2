package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/link"
)

// scratch is a directory that exists everywhere and may be covered while no command runs.
const scratch = "/proc"

// become turns this process into the command, or ends the process. fd is the socket's number.
func become(fd, path string, argv []string) {
	runtime.LockOSThread() // capabilities are per thread
	// Set the dispositions that the command will have. Otherwise a handler of the Go runtime may take a signal on a
	// thread that exec then ends, and the signal is lost.
	for _, s := range passedOn() {
		if !signal.Ignored(s) {
			dispose(s, sigDfl)
		}
	}
	sock, err := strconv.Atoi(fd)
	if err == nil {
		unix.CloseOnExec(sock)
		err = becomeOver(sock, path, argv)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "pinproxy: error: run the command: %s\n", err) // no other process can report it
	}
	os.Exit(1)
}

// becomeOver returns nil when the parent has been told what failed.
func becomeOver(sock int, path string, argv []string) error {
	message, err := receive(sock)
	if err != nil {
		return err
	}
	var o order
	if err := json.Unmarshal(message, &o); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	done, err := o.carryOut()
	if err != nil {
		return send(sock, failed(err))
	}
	fds := done.descriptors()
	err = send(sock, done, fds...)
	closeAll(fds)
	if err != nil {
		return err
	}
	if _, err := receive(sock); err != nil {
		return nil // the parent has ended or given up, so this process ends too
	}
	if !o.Keep {
		if err := dropCapabilities(); err != nil {
			return send(sock, failed(fmt.Errorf("drop capabilities: %w", err)))
		}
	}
	err = syscall.Exec(path, argv, syscall.Environ())
	if errors.Is(err, unix.ENOEXEC) { // a script without #!, as execvp(3) and shells run it
		err = syscall.Exec("/bin/sh", append([]string{"sh", path}, argv[1:]...), syscall.Environ())
	}
	r := failed(err)
	r.Kind = kindExec
	return send(sock, r)
}

// carryOut sets up everything. The error names the step that failed.
func (o order) carryOut() (done report, err error) {
	if err := o.apart(); err != nil {
		return done, fmt.Errorf("enter namespaces: %w", err)
	}
	// Where the shell's mounts are shared, ours would appear on the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return done, fmt.Errorf("make mounts slaves: %w", err)
	}
	if err := setUp("lo"); err != nil {
		return done, fmt.Errorf("set lo up: %w", err)
	}
	done.Dead = ignoreDeadRoutes()
	fillPackets()
	for _, err := range o.sysctls() {
		done.Warnings = append(done.Warnings, err.Error())
	}
	if done.Device, err = o.device(); err != nil {
		return done, err
	}
	// It stays in this network namespace, whoever has it.
	if done.Diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err != nil {
		done.Diag = -1 // a kernel without it, or a seccomp filter
	}
	warnings, err := o.cover()
	for _, err := range warnings {
		done.Warnings = append(done.Warnings, err.Error())
	}
	return done, err
}

// apart returns an error in the parent's namespaces, in case somebody starts this program by hand.
func (o order) apart() error {
	for link, parents := range map[string]string{nsNet: o.Net, nsMnt: o.Mnt} {
		own, err := os.Readlink(link)
		if err != nil {
			return err
		}
		if parents == "" || own == parents {
			return fmt.Errorf("%s is the parent's", own)
		}
	}
	return nil
}

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// device creates the TUN device, with its addresses and routes.
func (o order) device() (dev link.FD, err error) {
	// A denied open has its own hint, unlike a denied creation of a device.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return dev, fmt.Errorf("open /dev/net/tun: %w: %w", link.ErrNoTUN, err)
	case errors.Is(err, fs.ErrPermission):
		return dev, &stepError{"open /dev/net/tun: " + err.Error(), []error{err, ErrDevice}}
	case err != nil:
		return dev, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	_ = unix.Close(fd)
	c := link.Config{Name: o.Link, Offload: o.Offload, Index: boundTo()}
	dev, err = link.OpenFD(c)
	if err != nil && c.Index != 0 { // another device has the index
		c.Index = 0
		dev, err = link.OpenFD(c)
	}
	if err != nil {
		return dev, fmt.Errorf("make the device: %w", err)
	}
	l, err := netlink.LinkByName(dev.Name)
	if err != nil {
		return dev, fmt.Errorf("find the device: %w", err)
	}
	if err := netlink.LinkSetMTU(l, dev.MTU()); err != nil {
		return dev, fmt.Errorf("set the device's MTU: %w", err)
	}
	if err := netlink.LinkSetTxQLen(l, link.QueueLen); err != nil {
		return dev, fmt.Errorf("set the length of the device's queue: %w", err)
	}
	// No link-local address, so no router solicitation. Kernels without IPv6 refuse.
	_ = netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE)
	for _, a := range o.Addrs {
		addr := netlink.Addr{IPNet: prefix(a.AsSlice(), a.BitLen()), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, &addr); err != nil {
			return dev, fmt.Errorf("add the address %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return dev, fmt.Errorf("set the device up: %w", err)
	}
	for _, a := range o.Addrs {
		if err := usable(a); err != nil {
			return dev, fmt.Errorf("wait for the address %s: %w", a, err)
		}
	}
	for _, r := range o.Routes {
		route := netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix(r.Addr().AsSlice(), r.Bits()), Congctl: congestion}
		if err := netlink.RouteAdd(&route); err != nil {
			return dev, fmt.Errorf("add the route to %s: %w", r, err)
		}
	}
	return dev, nil
}

// boundTo returns the index of the device to which the kernel binds each new socket of this process, usually 0. That is
// what `ip vrf exec` does, by a BPF program of the control group, and some systems for each login. It binds the command's
// sockets as well, in a network namespace where no device has the VRF's index, unless ours does.
func boundTo() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	index, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil { // before Linux 5.1
		return 0
	}
	return index
}

// congestion is the congestion control over the device, the same as on a whole host: see package host.
const congestion = "reno"

// usable returns when the address receives packets. For IPv6 that is not immediate, even without duplicate address
// detection: the kernel adds the local route on a work queue (addrconf_dad_work). Packets that arrive earlier are
// lost, and datagrams are lost for good.
func usable(a netip.Addr) error {
	if a.Is4() {
		return nil
	}
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Dst: prefix(a.AsSlice(), a.BitLen())}
	for wait := 100 * time.Microsecond; wait < 5*time.Second; wait *= 2 {
		found, err := netlink.RouteListFiltered(netlink.FAMILY_V6, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_DST)
		if len(found) > 0 || err != nil {
			return err
		}
		time.Sleep(wait) // it takes about a millisecond on a quiet machine
	}
	return errors.New("it does not become usable")
}

func prefix(ip net.IP, bits int) *net.IPNet {
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, 8*len(ip))}
}

// ignoreDeadRoutes makes routes into devices created later count only while the device has a carrier. The TUN device
// has one while the parent lives. After that, processes left behind by the command find no route, as intended.
func ignoreDeadRoutes() bool {
	err := os.WriteFile("/proc/sys/net/ipv4/conf/default/ignore_routes_with_linkdown", []byte("1\n"), 0)
	err6 := os.WriteFile("/proc/sys/net/ipv6/conf/default/ignore_routes_with_linkdown", []byte("1\n"), 0)
	return err == nil && (err6 == nil || errors.Is(err6, fs.ErrNotExist)) // no IPv6 in this kernel
}

// fillPackets makes TCP fill each packet to the device with what it has, up to 64 KiB. By itself it does so only on a
// connection whose shortest round trip was below half a millisecond (tcp_tso_autosize), which none is of many that begin
// at once. Where it can't be set, as before Linux 5.18, it is no matter.
func fillPackets() { _ = os.WriteFile("/proc/sys/net/ipv4/tcp_tso_rtt_log", []byte("31\n"), 0) }

// sysctls sets what can be set; in containers /proc/sys is read-only. Of several values for one key, the first that
// the kernel accepts is used.
func (o order) sysctls() (warnings []error) {
	set := make(map[string]bool)
	why := make(map[string]error)
	for _, s := range o.Sysctls {
		if key, value := s[0], s[1]; !set[key] {
			why[key] = os.WriteFile("/proc/sys/"+key, []byte(value+"\n"), 0)
			set[key] = why[key] == nil
		}
	}
	for _, err := range why {
		if err != nil {
			warnings = append(warnings, err)
		}
	}
	return warnings
}

// cover makes the command see the files in place of the host's. mount(2) follows symbolic links.
func (o order) cover() (warnings []error, err error) {
	if len(o.Files) == 0 {
		return nil, nil
	}
	if err := unix.Mount("pinproxy", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	for i, f := range o.Files {
		own := filepath.Join(scratch, strconv.Itoa(i), filepath.Base(f.Path))
		if err := write(own, f.Content); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Path, err)
		}
		if overlaid(own, f) {
			continue
		}
		from, to := own, f.Path
		if f.Alone {
			from, to = filepath.Dir(own), filepath.Dir(f.Path)
		}
		err := unix.Mount(from, to, "", unix.MS_BIND, "")
		if errors.Is(err, fs.ErrNotExist) && f.Make {
			if err := overlay(filepath.Dir(own), filepath.Dir(f.Path)); err != nil {
				warnings = append(warnings, fmt.Errorf("make %s for the command: %w", f.Path, err))
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cover %s: %w", f.Path, err)
		}
	}
	if err := unix.Unmount(scratch, unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("unmount a tmpfs: %w", err)
	}
	return warnings, nil
}

// overlaid covers the directory that f links to, if that is one of f.Dirs. A mount over a file ends when somebody on
// the host renames another file to its place (d_invalidate), and the command would see that one. A file in an overlay
// stays.
func overlaid(own string, f File) bool {
	target, err := filepath.EvalSymlinks(f.Path)
	if err != nil || !slices.Contains(f.Dirs, filepath.Dir(target)) {
		return false
	}
	dir := filepath.Join(filepath.Dir(own), "dir")
	file := filepath.Join(dir, filepath.Base(target))
	return write(file, f.Content) == nil && overlay(dir, filepath.Dir(target)) == nil
}

// write creates a file in a new directory. The umask, which the command inherits, has no influence.
func write(path, content string) error {
	defer unix.Umask(unix.Umask(0))
	return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o444))
}

// overlay makes dir show the files of own in addition to its own. Without an upper layer it is read-only.
func overlay(own, dir string) error {
	return unix.Mount("pinproxy", dir, "overlay", unix.MS_RDONLY, "lowerdir="+own+":"+dir)
}

// dropCapabilities drops all capabilities of this thread, which is about to become the command. They stay in the
// bounding set: without it the kernel refuses to run a file that has capabilities, as ping does on Debian (EPERM). What
// such a file gets counts in the command's namespaces only.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	var none [2]unix.CapUserData
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
}
