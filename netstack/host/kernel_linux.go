package host

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernel carries out steps. openKernel opens everything it needs in the network namespace of the calling
// thread. After that it works on that namespace from any thread. It is not safe for concurrent use.
type kernel struct {
	nl     *netlink.Handle
	rtnl   *rtnl
	cfg    Config
	link   int                 // index of the device, fixed: a new device of the same name is a different one
	ipv6   *os.File            // the device's disable_ipv6; nil where the kernel has no IPv6
	ipv6RO error               // why that can't be written, as where /proc/sys is read-only
	conf   map[string]*os.File // its settings in planPaths, by key

	readOnly bool // no sysctl can be written
}

// openKernel opens what it needs for the device c.Link, which must exist.
func openKernel(c Config) (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	k := &kernel{nl: h, cfg: c}
	if k.rtnl, err = openRTNL(); err != nil {
		k.close()
		return nil, err
	}
	link, err := h.LinkByName(c.Link)
	if err != nil {
		k.close()
		return nil, fmt.Errorf("find device %q: %w", c.Link, err)
	}
	k.link = link.Attrs().Index
	if k.ipv6, err = os.OpenFile("/proc/sys/"+disableIPv6(c.Link), os.O_RDWR, 0); err != nil {
		k.ipv6RO = err // an error only if it has to be written
		if k.ipv6, err = os.Open("/proc/sys/" + disableIPv6(c.Link)); err != nil {
			k.ipv6 = nil
		}
	}
	k.conf = map[string]*os.File{}
	k.readOnly = sysctlsReadOnly()
	for _, s := range planPaths(c, k.readOnly) {
		key := s.(sysctl).key
		f, err := os.OpenFile("/proc/sys/"+key, os.O_RDWR, 0)
		if err != nil {
			k.close()
			return nil, explain(s.String(), err)
		}
		k.conf[key] = f
	}
	return k, nil
}

func (k *kernel) close() {
	k.nl.Close()
	if k.rtnl != nil {
		k.rtnl.close()
	}
	if k.ipv6 != nil {
		k.ipv6.Close()
	}
	for _, f := range k.conf {
		f.Close()
	}
}

// ref identifies the device by its index alone.
func (k *kernel) ref() netlink.Link {
	return &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: k.link, Name: k.cfg.Link}}
}

// do makes a change other than a route; routes come in batches.
func (k *kernel) do(s Step) error {
	var err error
	switch s := s.(type) {
	case device: // created by someone else
	case linkSet:
		err = k.setLink(s)
	case linkUp:
		err = k.nl.LinkSetUp(k.ref())
	case addr:
		err = k.addAddr(s)
	case noMulticast:
		if err = k.rtnl.delMulticast(k.link); errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // no IPv6 in this kernel
		}
	case sysctl:
		err = k.write(s)
	case rule:
		err = k.rtnl.addRule(s)
	default:
		err = errors.ErrUnsupported
	}
	return explain(s.String(), err)
}

// undo reverts a change. It is not an error if the change is already gone.
func (k *kernel) undo(s Step) error {
	var err error
	switch s := s.(type) {
	case linkUp:
		err = k.nl.LinkSetDown(k.ref())
	case addr:
		err = k.nl.AddrDel(k.ref(), s.netlink())
	case rule:
		err = k.rtnl.delRule(s)
	}
	if gone(err) {
		return nil
	}
	return explain(s.Undo(), err)
}

// gone reports whether err means that the thing to be deleted does not exist. The errnos are for a rule, a
// route, an address, a device, and all of IPv6, in this order.
func gone(err error) bool {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL, unix.ENODEV, unix.EAFNOSUPPORT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// explain names the line that failed, and how to get the permission for it.
func explain(line string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w (it takes CAP_NET_ADMIN: run as root)", line, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%s: %w (left by a killed pinproxy? `pinproxy cleanup` removes it)", line, err)
	}
	return fmt.Errorf("%s: %w", line, err)
}

func (k *kernel) setLink(s linkSet) error {
	link := k.ref()
	if err := k.nl.LinkSetMTU(link, s.mtu); err != nil {
		return err
	}
	if s.queueLen > 0 {
		if err := k.nl.LinkSetTxQLen(link, s.queueLen); err != nil {
			return err
		}
	}
	if err := k.nl.LinkSetMulticastOff(link); err != nil {
		return err
	}
	err := k.nl.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // no IPv6 in this kernel
	}
	return err
}

// addAddr returns when the address receives packets. For IPv6 this takes a moment, even without duplicate
// address detection: the kernel adds the local route on a work queue (addrconf_dad_work), and until then
// answers "no route" to whatever comes out of the device. The address may exist: whoever else gave the device its
// address, or an earlier attempt that did not wait long enough.
func (k *kernel) addAddr(s addr) error {
	err := k.nl.AddrAdd(k.ref(), s.netlink())
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if s.addr.Is4() {
		return nil
	}
	local := netip.PrefixFrom(s.addr, s.addr.BitLen())
	for wait := 100 * time.Microsecond; wait < time.Second; wait *= 2 {
		found := false
		err := k.rtnl.dumpRoutes(v6, unix.RT_TABLE_LOCAL, func(r routeInfo) {
			found = found || r.dst == local && r.typ == unix.RTN_LOCAL
		})
		if found || err != nil {
			return err
		}
		time.Sleep(wait) // takes about a millisecond, and nothing of ours is captured yet
	}
	return errors.New("the address does not become usable")
}

// write changes one of the device's settings. The files were opened in the device's network namespace.
func (k *kernel) write(s sysctl) error {
	f := k.conf[s.key]
	if s.key == disableIPv6(k.cfg.Link) {
		if k.ipv6RO != nil {
			return k.ipv6RO
		}
		f = k.ipv6
	}
	if f == nil {
		return unix.ENOENT
	}
	_, err := f.WriteAt([]byte(s.value), 0)
	return err
}

// ipv6Off reads the device's disable_ipv6.
func (k *kernel) ipv6Off() bool {
	if k.ipv6 == nil {
		return false
	}
	b := make([]byte, 8)
	n, _ := k.ipv6.ReadAt(b, 0)
	return strings.TrimSpace(string(b[:n])) == "1"
}

// addRoutes adds routes and returns how many were missing.
func (k *kernel) addRoutes(list []dest) (int, error) {
	added, err := k.rtnl.addRoutes(list, unix.NLM_F_EXCL, k.link)
	return added, explain("add routes", err)
}

// replaceRoutes replaces existing routes.
func (k *kernel) replaceRoutes(list []dest) error {
	_, err := k.rtnl.addRoutes(list, unix.NLM_F_REPLACE, k.link)
	return explain("replace routes", err)
}

// delRoutes deletes routes and ignores those that do not exist.
func (k *kernel) delRoutes(list []dest) error {
	_, err := k.rtnl.delRoutes(list)
	return explain("delete routes", err)
}

// up reports whether the device is up. Its error is ErrLinkGone if the device no longer exists.
func (k *kernel) up() (bool, error) {
	link, err := k.nl.LinkByIndex(k.link)
	if err != nil {
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok || gone(err) {
			return false, ErrLinkGone
		}
		return false, fmt.Errorf("look at device %q: %w", k.cfg.Link, err)
	}
	return link.Attrs().RawFlags&unix.IFF_UP != 0, nil
}

// addrs returns the device's addresses of a family.
func (k *kernel) addrs(fam family) ([]netip.Addr, error) {
	list, err := addrs(k.nl, k.ref(), fam)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %q: %w", k.cfg.Link, err)
	}
	return list, nil
}

// addrs returns the addresses of a family that a device has, or if it is nil, the host.
func addrs(h *netlink.Handle, of netlink.Link, fam family) (addrs []netip.Addr, err error) {
	list, err := again(func() ([]netlink.Addr, error) { return h.AddrList(of, int(fam.af())) })
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, ip.Unmap())
		}
	}
	return addrs, err
}

// ourRules returns the host's rules of a family that have our protocol number.
func ourRules(h *netlink.Handle, fam family) ([]netlink.Rule, error) {
	list, err := allRules(h, fam)
	return slices.DeleteFunc(list, func(r netlink.Rule) bool { return r.Protocol != Protocol }), err
}

func allRules(h *netlink.Handle, fam family) ([]netlink.Rule, error) {
	list, err := again(func() ([]netlink.Rule, error) { return h.RuleList(int(fam.af())) })
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return list, nil
}

// again repeats a listing that a change has disturbed.
func again[T any](list func() ([]T, error)) ([]T, error) {
	var found []T
	var err error
	for range 10 {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return found, nil // disturbed every time: the best available result
}

// forever is how long, in seconds, an address is valid. Where an int has 32 bits it can't say so to the kernel, and
// stands for 68 years.
const forever = min(math.MaxUint32, math.MaxInt)

func (s addr) netlink() *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(s.addr, s.addr.BitLen())), Flags: unix.IFA_F_NOPREFIXROUTE}
	if s.addr.Is6() {
		a.Flags |= unix.IFA_F_NODAD
	}
	switch {
	case s.last && s.addr.Is6():
		a.ValidLft, a.PreferedLft = forever, 0 // preferred never
	case s.last:
		a.Scope = unix.RT_SCOPE_LINK
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
