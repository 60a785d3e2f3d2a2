package lab

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a network namespace. Do, Start and the socket methods are safe for concurrent use.
type Host struct {
	name  string
	net   *Net
	nl    *netlink.Handle
	links int // number created so far, for names

	mu sync.RWMutex // for goroutines that outlive the network: net.Resolver leaves some behind
	ns netns.NsHandle
}

// quiet are the initial sysctls of every host. They override the machine's own configuration, and turn off duplicate
// address detection, which delays IPv6 by a second.
var quiet = [][2]string{
	{"net/ipv4/ip_forward", "0"}, // first: it resets others
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/default/dad_transmits", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
}

// Host adds a host: a new network namespace with lo up, IPv6 on and nothing else. The name is for error messages.
func (n *Net) Host(name string) *Host {
	n.helper()
	h := &Host{name: name, net: n, ns: netns.None()}
	n.check("make host "+name, h.make())
	n.atClose(h.close)
	for _, s := range quiet {
		h.Sysctl(s[0], s[1])
	}
	return h
}

// make creates the namespace on this thread and returns to the old one.
func (h *Host) make() error {
	return onThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		h.ns = ns
		if err := loopbackUp(); err != nil {
			return err
		}
		// Sockets of other netlink families would be created on demand, in the caller's namespace.
		h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
		return err
	})
}

func (h *Host) close() error {
	h.nl.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ns.Close()
}

// enter moves the thread into the namespace.
func (h *Host) enter() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if err := netns.Set(h.ns); err != nil { // the descriptor is -1 after it was closed
		return fmt.Errorf("enter host %s: %w", h.name, err)
	}
	return nil
}

// Name returns the name given to [Net.Host].
func (h *Host) Name() string { return h.name }

// Do calls f on this goroutine, with its thread in the host's network namespace, and returns f's error. Goroutines
// started by f are not in that namespace.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f with the goroutine locked to its thread, and then moves the thread back into its previous network
// namespace.
func onThread(f func() error) error {
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find network namespace: %w", err)
	}
	defer func() {
		if err := netns.Set(back); err != nil {
			panic(fmt.Sprintf("lab: leave network namespace: %v", err))
		}
		back.Close()
		runtime.UnlockOSThread()
	}()
	return f()
}

// Netlink returns a handle (route and sock_diag) in the host's namespace. It belongs to the host.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// Namespace returns the descriptor that holds the host's namespace. It belongs to the host.
func (h *Host) Namespace() int { return int(h.ns) }

// Sysctl sets a sysctl of the namespace. Keys are written as net.ipv4.ip_forward, or with slashes if a part contains
// a dot.
func (h *Host) Sysctl(key, value string) {
	h.net.helper()
	// The newline matters if value is empty: writing no bytes changes nothing.
	h.check("set "+key, h.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value+"\n"), 0o644) }))
}

// SysctlGet returns a sysctl of the namespace, without the final newline.
func (h *Host) SysctlGet(key string) string {
	h.net.helper()
	var value []byte
	h.check("get "+key, h.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(key))
		return err
	}))
	return strings.TrimSuffix(string(value), "\n")
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return "/proc/sys/" + key
}

// Forward makes the host forward packets of both families.
func (h *Host) Forward() {
	h.net.helper()
	h.Sysctl("net.ipv4.ip_forward", "1")
	h.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

func (h *Host) check(what string, err error) {
	h.net.helper()
	h.net.check(h.name+": "+what, err)
}
