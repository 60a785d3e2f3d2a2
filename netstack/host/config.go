package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
)

// Values that mark our changes as ours. Each one avoids the known users of the same number space.
const (
	// Link is the usual name of the device.
	Link = "pin0"
	// Mark is the firewall mark of our own sockets. Its bits are outside the masks of kube-proxy (0x4000,
	// 0x8000), Tailscale (0xff0000), Calico (0xffff0000) and Cilium (0xf00).
	Mark = 0x70
	// Protocol is the rtnetlink protocol number of all our rules and routes. It is unused in the kernel's
	// include/uapi/linux/rtnetlink.h and in iproute2's rt_protos.
	Protocol = 80
	// DefaultMTU is the MTU of an ordinary interface, so that path MTU discovery does not change.
	DefaultMTU = 1500
)

// Addresses of the device. Addr4 is the IPv4 dummy address (RFC 7600; IANA's special-purpose registry: valid as
// a source, never forwarded), so no host can already have it. Addr6 is a unique local address with a random
// global ID (RFC 4193).
var (
	Addr4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})
	Addr6 = netip.AddrFrom16([16]byte{0xfd, 0x86, 0xe9, 0xca, 0xf6, 0x2c, 15: 8})
)

// Guest4 and Guest6 are further addresses of the device if there are gateways. The kernel gives them to hosts
// behind a gateway whose packets are masqueraded when they enter the device, as Docker and libvirt have it. With
// only the device's own address those hosts would look like this one. Guest4 is of IANA's 192.0.0.0/24 (RFC 6890)
// and assigned to nothing.
var (
	Guest4 = netip.AddrFrom4([4]byte{192, 0, 0, 52})
	Guest6 = netip.AddrFrom16([16]byte{0xfd, 0x86, 0xe9, 0xca, 0xf6, 0x2c, 15: 9})
)

// PortRange is an inclusive range of TCP ports. 1-65535 is every port.
type PortRange = struct{ First, Last uint16 }

// Capture makes connections to Dst enter the device if their destination port is in Config.PortSets[Set].
type Capture = struct {
	Dst netip.Prefix
	Set int
}

// Config says what to capture and how. A zero field means its default, if it has one.
type Config struct {
	Link     string        // device, created by someone else; default [Link]
	MTU      int           // bytes, 1280 to 65535; default [DefaultMTU]
	QueueLen int           // the device's txqueuelen, packets; 0: leave it as created
	PortSets [][]PortRange // indexed by Capture.Set; an empty one is an unused number
	Captures []Capture     // in place from the start; [Host.Add] adds those learned later
	DNS      bool          // also capture port 53, UDP and TCP
	Gateways []string      // devices: also capture what the hosts behind them send
	Strict   bool          // also capture sockets bound to a source address
	Reserve  []PortRange   // the pins' ports, for ip_local_reserved_ports, not merged: the widest may be left out
	Leased   []PortRange   // source ports that live flows have but no pin has any more; for Strict only
	StateDir string        // directory of the state file; without it nothing is reserved
	Log      *slog.Logger  // one line per repair; default none
}

// Facts is what the plan needs to know about the host. [Look] determines it.
type Facts struct {
	IPv6       bool        // the host has an IPv6 route of its own
	IPv6Off    bool        // the device has IPv6 disabled, or would have
	Gateways   []Gateway   // the devices in Config.Gateways
	LocalPorts PortRange   // net.ipv4.ip_local_port_range
	Reserved   []PortRange // net.ipv4.ip_local_reserved_ports
	ReadOnly   bool        // sysctls can't be written
	StrictPath bool        // IPv4's rp_filter is strict for a device
	// PortsUnswapped says that rp_filter, where it looks at ports, takes those of an answer for those of what it answers.
	PortsUnswapped bool
}

// withDefaults returns c with the defaults filled in.
func (c Config) withDefaults() Config {
	if c.Link == "" {
		c.Link = Link
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// guest returns the device's address for hosts behind a gateway, of a family. It is invalid if there is no gateway.
func (c Config) guest(fam family) netip.Addr {
	switch {
	case len(c.Gateways) == 0:
		return netip.Addr{}
	case fam == v6:
		return Guest6
	}
	return Guest4
}

// check reports what the kernel would refuse or misinterpret.
func (c Config) check() error {
	if !ValidName(c.Link) {
		return fmt.Errorf("device name %q: not a valid name", c.Link)
	}
	if c.MTU < 1280 || c.MTU > 65535 { // RFC 8200: below 1280 there is no IPv6
		return fmt.Errorf("mtu %d: not between 1280 and 65535", c.MTU)
	}
	for i, set := range c.PortSets {
		for _, r := range set {
			if err := checkRange(r); err != nil {
				return fmt.Errorf("port set %d: %w", i, err)
			}
		}
	}
	for _, r := range c.Reserve {
		if err := checkRange(r); err != nil {
			return fmt.Errorf("reserve: %w", err)
		}
	}
	for _, capture := range c.Captures {
		if err := c.checkCapture(capture); err != nil {
			return err
		}
	}
	if err := c.checkGateways(); err != nil {
		return err
	}
	if _, over := planRules(c, v6, nil); over > 0 { // IPv6 has as many rules as IPv4, or one more
		return fmt.Errorf("%d ranges of ports too many for the host's rule list: join ranges, or use *", over)
	}
	return nil
}

// ValidName reports whether the kernel accepts name as a device name (dev_valid_name).
func ValidName(name string) bool {
	return name != "" && len(name) <= 15 && !strings.ContainsAny(name, "/: \t\n") && name != "." && name != ".."
}

func checkRange(r PortRange) error {
	if r.First == 0 || r.First > r.Last {
		return fmt.Errorf("ports %d-%d: not a range", r.First, r.Last)
	}
	return nil
}

func (c Config) checkCapture(capture Capture) error {
	switch {
	case capture.Set < 0 || capture.Set >= len(c.PortSets) || len(c.PortSets[capture.Set]) == 0:
		return fmt.Errorf("capture %v: no port set %d", capture.Dst, capture.Set)
	case !capture.Dst.IsValid() || capture.Dst.Addr().Is4In6():
		return fmt.Errorf("capture %v: not a prefix", capture.Dst)
	case capture.Dst != capture.Dst.Masked():
		return fmt.Errorf("capture %v: bits set beyond the prefix length", capture.Dst)
	}
	return nil
}

// ErrLinkGone is returned by Run when the device has disappeared. Nothing is captured any more.
var ErrLinkGone = errors.New("device is gone")

// HeldError reports that another pinproxy holds this network namespace.
type HeldError struct {
	PID int // 0: not visible from here
}

func (e *HeldError) Error() string {
	if e.PID == 0 {
		return "another pinproxy is running in this network namespace"
	}
	return fmt.Sprintf("another pinproxy is running in this network namespace: pid %d", e.PID)
}
