package host

import "fmt"

// Gateway is the current state of a device in Config.Gateways.
type Gateway struct {
	Name               string
	Index              int    // 0: there is no such device
	Forward4, Forward6 bool   // this host forwards what arrives on it
	IPv6               bool   // it has an address of IPv6 that is not for its link alone
	VRF                string // that it belongs to; "": none
}

// DemandError reports a required host setting that is missing. Hint is the command that sets it.
type DemandError struct{ What, Hint string }

func (e *DemandError) Error() string { return e.What }

// checkGateways reports names that cannot be gateways.
func (c Config) checkGateways() error {
	seen := map[string]bool{}
	for _, name := range c.Gateways {
		switch {
		case !ValidName(name):
			return fmt.Errorf("gateway %q: not a valid device name", name)
		case name == c.Link:
			return fmt.Errorf("gateway %s: is the device into which connections are captured", name)
		case name == "lo":
			return fmt.Errorf("gateway lo: no host is behind it, and this host's connections are captured as it is")
		case seen[name]:
			return fmt.Errorf("gateway %s: named twice", name)
		}
		seen[name] = true
	}
	return nil
}

// planPaths makes the kernel accept answers from the device to hosts behind a gateway, and forward them, and answers to
// sockets that are bound to an address of this host.
//
// The kernel looks up the path back to the server with the client's address as source (fib_validate_source).
// The rules look for the gateway as incoming interface, which this lookup does not have. So the path leads out
// of the host, not into pin0, and strict rp_filter treats the answers as forged. So it does with those to bound
// sockets: unless a rule of the host's looks at the ports of forwarded packets, the lookup has no ports. Loose mode
// accepts any path at all. The higher of a device's value and conf.all's counts, so this one is 2 in effect whatever
// conf.all says. IPv6 has no rp_filter, and forwards according to the setting for all devices (ip6_forward).
//
// Where sysctls are read-only, as in some containers, gateways are out of the question, but strict capturing is not.
func planPaths(c Config, readOnly bool) []Step {
	switch {
	case len(c.Gateways) > 0:
		return []Step{sysctl{rpFilter(c.Link), "2"}, sysctl{forwarding(c.Link), "1"}}
	case c.Strict && !readOnly:
		return []Step{sysctl{rpFilter(c.Link), "2"}}
	}
	return nil
}

func rpFilter(link string) string   { return "net/ipv4/conf/" + link + "/rp_filter" }
func forwarding(link string) string { return "net/ipv4/conf/" + link + "/forwarding" }

// gatewayWarnings returns what keeps gateways from working.
func gatewayWarnings(f Facts) (list []error) {
	for _, g := range f.Gateways {
		if g.Index == 0 {
			list = append(list, &DemandError{
				fmt.Sprintf("gateway %s: there is no such device: what comes in through it is captured when it appears", g.Name),
				"ip -br link",
			})
			continue
		}
		list = append(list, g.demands(f.IPv6)...)
	}
	return list
}

// demands returns what keeps an existing gateway from working.
func (g Gateway) demands(ipv6 bool) (list []error) {
	if g.VRF != "" { // the rule of l3mdev, 1000, comes before ours
		list = append(list, &DemandError{
			fmt.Sprintf("gateway %s: it belongs to the VRF %s, whose rule the kernel asks first: hosts behind it are not pinned", g.Name, g.VRF),
			fmt.Sprintf("sudo ip link set %s nomaster", g.Name),
		})
	}
	if !g.Forward4 {
		list = append(list, g.demand("IPv4", "net.ipv4.ip_forward=1"))
	}
	// Most of Docker's and libvirt's bridges have no IPv6, and forwarding it costs a host the routes that it has from
	// router advertisements (accept_ra).
	if !g.Forward6 && g.IPv6 && ipv6 {
		list = append(list, g.demand("IPv6", "net.ipv6.conf.all.forwarding=1"))
	}
	return list
}

func (g Gateway) demand(family, sysctl string) error {
	return &DemandError{
		fmt.Sprintf("gateway %s: this host does not forward %s: the kernel drops what the hosts behind it send", g.Name, family),
		"sudo sysctl -w " + sysctl,
	}
}
