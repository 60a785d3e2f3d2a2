package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// rp_filter 1 is the strictest setting among distributions.
func TestCapture(t *testing.T) {
	for _, rpFilter := range []string{"0", "1"} {
		t.Run("rp_filter="+rpFilter, func(t *testing.T) {
			b := newBench(t)
			for _, dev := range []string{"all", "default", "eth0"} {
				b.Client.Sysctl("net.ipv4.conf."+dev+".rp_filter", rpFilter)
			}
			b.dissect()
			var open []net.Conn
			for _, a := range servers {
				open = append(open, b.direct(dialer{}, a, 443))
			}
			before := b.snapshot()
			b.apply(web())
			for _, w := range b.host.Warnings() {
				t.Error(w)
			}
			b.tun.empty("at the start")
			for _, c := range open {
				b.works(c)
			}
			for _, a := range servers {
				b.capturedFromTUN(dialer{}, a, 443)
				b.capturedFromTUN(dialer{local: ":7777"}, a, 443)
				b.direct(dialer{local: b.own(a)}, a, 443)
				b.direct(dialer{dev: "eth0"}, a, 443)
				b.direct(dialer{mark: Mark}, a, 443)
				b.direct(dialer{mark: Mark, local: ":63999"}, a, 443)
				b.direct(dialer{}, a, 80)
				b.direct(dialer{}, a, 53)
				b.udp(a, 443)
				b.udp(a, 53)
			}
			b.tun.empty("UDP")
			b.tun.drain()
			if err := b.undo(t.Context()); err != nil {
				t.Error("undo:", err)
			}
			for _, c := range open {
				b.works(c)
			}
			for _, a := range servers {
				b.direct(dialer{}, a, 443)
			}
			b.tun.file.Close()
			b.same("after undo", before)
			if err := b.undo(t.Context()); err != nil {
				t.Error("second undo:", err)
			}
		})
	}
}

// own returns the client's address of a's family, any port.
func (b *bench) own(a netip.Addr) string {
	if a.Is6() {
		return "[" + lab.Client6 + "]:0"
	}
	return lab.Client4 + ":0"
}

// udp sends a datagram from an unbound socket.
func (b *bench) udp(a netip.Addr, port uint16) {
	b.t.Helper()
	c, err := b.Client.Dial(b.t.Context(), "udp", netip.AddrPortFrom(a, port).String())
	if err == nil {
		_, err = c.Write([]byte("x"))
		c.Close()
	}
	if err != nil {
		b.t.Error(err)
	}
}

// Until the device's addresses are gone, the rules stay that keep what is left of captured flows from leaving by the
// uplink with such an address.
func TestUndoHoldsRemnantsBack(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	var fd int
	err := b.Client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return subscribe(fd, math.MaxUint32) // nobody's
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := b.undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	var order []string
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			break // everything is reported before undo returns
		}
		list, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			switch fam := map[byte]family{unix.AF_INET: v4, unix.AF_INET6: v6}[m.Data[0]]; m.Header.Type {
			case unix.RTM_DELADDR:
				order = append(order, fmt.Sprint("address ", fam))
			case unix.RTM_DELRULE:
				if pref := priority(t, m); pref == prefSelf || pref == prefSelfGone {
					order = append(order, fmt.Sprint("rule ", fam))
				}
			}
		}
	}
	for _, fam := range []family{v4, v6} {
		address, rule := slices.Index(order, fmt.Sprint("address ", fam)), slices.Index(order, fmt.Sprint("rule ", fam))
		if address < 0 || rule < address {
			t.Errorf("IPv%d: the rules go before the address: %q", fam, order)
		}
	}
}

// priority returns the priority in a message about a rule.
func priority(t *testing.T, m syscall.NetlinkMessage) int {
	t.Helper()
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.FRA_PRIORITY {
			return int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return 0
}

func TestStop(t *testing.T) {
	b := newBench(t)
	before := b.snapshot()
	b.apply(web())
	if err := b.host.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, stop := b.run(regularly)
	b.host.lookSoon(dirtAll)
	for _, a := range servers {
		b.direct(dialer{}, a, 443)
		// Later packets of a captured flow have the device's address.
		from := Addr4
		if a.Is6() {
			from = Addr6
		}
		b.captured(dialer{local: netip.AddrPortFrom(from, 0).String()}, a, 443)
	}
	stop()
	if err := b.undo(t.Context()); err != nil {
		t.Error("undo:", err)
	}
	b.tun.file.Close()
	b.same("after undo", before)
}

// dissect makes rp_filter look at ports, as anyone's rule about the ports of forwarded packets does.
func (b *bench) dissect() {
	b.t.Helper()
	foreign := netlink.NewRule()
	foreign.Priority, foreign.Table, foreign.IifName, foreign.IPProto = 9000, 254, "eth9", protoUDP
	if err := b.Client.Netlink().RuleAdd(foreign); err != nil {
		b.t.Fatal(err)
	}
}

func TestStrict(t *testing.T) {
	b := newBench(t)
	for _, dev := range []string{"all", "default", "eth0"} {
		b.Client.Sysctl("net.ipv4.conf."+dev+".rp_filter", "1")
	}
	b.dissect()
	c := web()
	c.Strict = true
	c.Reserve = []PortRange{{63998, 63999}}
	b.apply(c)
	if !lab.KernelIs(5, 4) { // as the warning's hint says
		b.Client.Sysctl("net.ipv4.conf.all.rp_filter", "2")
	}
	for _, a := range servers {
		b.capturedFromTUN(dialer{}, a, 443)
		if p := b.captured(dialer{local: b.own(a)}, a, 443); p != nil && p.src().Addr() == Addr4 {
			t.Errorf("the source is %v", p.src())
		}
		b.direct(dialer{mark: Mark, local: ":63999"}, a, 443)
		b.direct(dialer{mark: Mark, local: ":63999"}, a, 80)
		b.direct(dialer{}, a, 80)
	}
	// A limit of policy routing: a socket bound to another device does not use the route.
	b.direct(dialer{dev: "eth0", local: ":63998"}, server4, 443)
}

// A strict rp_filter that looks at no ports would drop the answers to bound sockets.
func TestStrictAnswers(t *testing.T) {
	b := newBench(t)
	b.Client.Sysctl("net.ipv4.conf.default.rp_filter", "1")
	c := web()
	c.Strict = true
	b.apply(c)
	if w := b.host.Warnings(); lab.KernelIs(5, 4) && len(w) > 0 {
		t.Error("warnings:", w)
	}
	b.captured(dialer{local: b.own(server4)}, server4, 443)
	b.Client.Sysctl(rpFilter(Link), "1")
	if _, err := b.host.look(b.host.aboutGateways(message{typ: unix.RTM_NEWNETCONF})); err != nil {
		t.Error(err)
	}
	b.captured(dialer{local: b.own(server4)}, server4, 443)
}

func TestStrictPath(t *testing.T) {
	for _, test := range []struct {
		all, eth0, lo string
		want          bool
	}{{"0", "0", "0", false}, {"0", "1", "0", true}, {"1", "0", "0", true}, {"2", "1", "1", false}, {"0", "2", "1", false}} {
		conf := fstest.MapFS{}
		for dev, value := range map[string]string{"all": test.all, "default": "0", "eth0": test.eth0, "lo": test.lo} {
			conf[dev+"/rp_filter"] = &fstest.MapFile{Data: []byte(value + "\n")}
		}
		if got := strictPath(conf); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestDNS(t *testing.T) {
	b := newBench(t)
	c := web()
	c.DNS = true
	b.apply(c)
	for _, a := range servers {
		b.udp(a, 53)
		p := b.tun.next()
		if p.proto() != protoUDP || p.dst() != netip.AddrPortFrom(a, 53) || !(p.src().Addr() == Addr4 || p.src().Addr() == Addr6) {
			t.Errorf("captured %v", p)
		}
		b.capturedFromTUN(dialer{}, a, 53)
		b.capturedFromTUN(dialer{}, a, 443)
		b.direct(dialer{mark: Mark}, a, 53)
		b.direct(dialer{}, a, 80)
		b.udp(a, 443)
	}
	b.tun.empty("UDP, not to port 53")
}

// The kernel refuses a rule for a range of ports that ends at 65535.
func TestRangesUpToTheLastPort(t *testing.T) {
	b := newBench(t)
	c := Config{PortSets: [][]PortRange{{{8000, 65535}}, {{443, 443}, {65535, 65535}}}, Strict: true, Reserve: []PortRange{{65000, 65535}}}
	for _, a := range servers {
		for set := range c.PortSets {
			c.Captures = append(c.Captures, Capture{Dst: netip.PrefixFrom(a, a.BitLen()), Set: set})
		}
	}
	b.apply(c)
	for _, a := range servers {
		b.direct(dialer{}, a, 80)
		for _, port := range []uint16{443, 8000, 65534, 65535} {
			b.capturedFromTUN(dialer{}, a, port)
		}
	}
}

// Without a route our own dials fail. They do not come back to us.
func TestMarkedNeverLoops(t *testing.T) {
	b := newBench(t)
	b.apply(Config{
		PortSets: [][]PortRange{{{1, 65535}}},
		Captures: []Capture{capture("0.0.0.0/0", 0), capture("::/0", 0)},
	})
	b.capturedFromTUN(dialer{}, server4, 80)
	b.capturedFromTUN(dialer{}, server6, 443)
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := b.Client.Netlink().RouteList(nil, fam)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil {
				if err := b.Client.Netlink().RouteDel(&r); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, a := range servers {
		for _, d := range []dialer{{mark: Mark}, {mark: Mark, local: ":63999"}} {
			if _, err := b.dial(t.Context(), d, "tcp", a, 443); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%v to %v: %v", d, a, err)
			}
		}
		b.tun.empty("marked")
		b.capturedFromTUN(dialer{}, a, 443)
	}
}

// The death of the process closes the device and does nothing else.
func TestKilled(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	b.Client.Sysctl("net.ipv4.ip_local_reserved_ports", "8080,63999")
	open := b.direct(dialer{}, server4, 443)
	before := b.snapshot()
	c := web()
	c.DNS, c.StateDir, c.Reserve = true, dir, []PortRange{{63990, 63999}}
	b.apply(c)
	for _, w := range b.host.Warnings() {
		t.Error(w)
	}
	if got := b.Client.SysctlGet("net.ipv4.ip_local_reserved_ports"); got != "8080,63990-63999" {
		t.Errorf("reserved %q", got)
	}
	captured, err := b.dialCaptured()
	if err != nil {
		t.Fatal(err)
	}

	b.tun.file.Close()
	b.tun = nil
	b.host.close()

	b.works(open)
	for _, a := range servers {
		for _, port := range []uint16{443, 80, 53} {
			b.direct(dialer{}, a, port)
		}
	}
	// Nothing leaves the host with the device's address.
	if _, err := unix.Write(captured, []byte("x")); err == nil {
		t.Error("a captured connection goes on")
	}
	unix.Close(captured)

	clean := func() (done []string) {
		err := b.Client.Do(func() (err error) {
			done, err = cleanUp(t.Context(), dir)
			return err
		})
		if err != nil {
			t.Error("clean up:", err)
		}
		return done
	}
	done := clean()
	b.same("after clean-up", before)
	if len(done) != 8+9+1 || done[0] != "ip rule del pref 4012 protocol 80" || done[len(done)-1] != "sysctl -w net.ipv4.ip_local_reserved_ports=8080,63999" {
		t.Errorf("clean-up did %q", done)
	}
	if done := clean(); len(done) > 0 {
		t.Errorf("second clean-up did %q", done)
	}
	b.works(open)
}

// dialCaptured begins a captured connection and leaves it pending.
func (b *bench) dialCaptured() (fd int, err error) {
	err = b.Client.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err := unix.Connect(fd, &unix.SockaddrInet4{Port: 443, Addr: server4.As4()})
		if !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	})
	if err == nil {
		b.tun.next()
	}
	return fd, err
}

// Open connections never enter the device, not even between two steps.
func TestOpenConnectionsStayOut(t *testing.T) {
	b := newBench(t)
	var open []net.Conn
	for _, a := range servers {
		open = append(open, b.direct(dialer{}, a, 443))
	}
	stop := make(chan struct{})
	var pumps sync.WaitGroup
	for _, c := range open {
		pumps.Go(func() { pump(t, c, stop) })
	}
	b.apply(web())
	for range 20 {
		if err := b.undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := b.Client.Do(func() (err error) {
			b.undo, err = b.host.Apply(t.Context())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	pumps.Wait()
	b.tun.empty("open connections")
}

// pump sends bytes back and forth until stop is closed.
func pump(t *testing.T, c net.Conn, stop <-chan struct{}) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if _, err := c.Write(b); err != nil {
			t.Error(err)
			return
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Error(err)
			return
		}
	}
}

// The host's other policy rules, such as a VPN's, continue to apply to our own dials.
func TestMarkedObeysOtherRules(t *testing.T) {
	b := newBench(t)
	vpn := netlink.NewRule()
	vpn.Priority, vpn.Type = 5270, unix.RTN_PROHIBIT
	if err := b.Client.Netlink().RuleAdd(vpn); err != nil {
		t.Fatal(err)
	}
	b.apply(web())
	b.capturedFromTUN(dialer{}, server4, 443)
	if _, err := b.dial(t.Context(), dialer{mark: Mark}, "tcp", server4, 443); !errors.Is(err, unix.EACCES) {
		t.Errorf("marked: %v", err)
	}
}

func TestNoDescriptorIsLeft(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	var before int
	for i := range 3 {
		if err := b.undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			before = count()
		}
		err := b.Client.Do(func() (err error) {
			b.undo, err = b.host.Apply(t.Context())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := b.undo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := count(); after > before { // earlier tests may still have been closing theirs
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// A plan that fails halfway leaves nothing behind.
func TestApplyFails(t *testing.T) {
	b := newBench(t)
	last := rule{fam: v6, pref: 4010, lo: true, proto: protoTCP, dport: PortRange{443, 443}, action: lookup, table: tablePortSet}.theirs()
	foreign := *last
	foreign.Protocol = 99 // otherwise identical, and not ours to delete
	if err := b.Client.Netlink().RuleAdd(&foreign); err != nil {
		t.Fatal(err)
	}
	before := b.snapshot()
	if err := b.Client.Netlink().RuleAdd(last); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := web()
	c.StateDir, c.Reserve = dir, []PortRange{{63999, 63999}}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	apply := func() error {
		return b.Client.Do(func() error {
			_, err := h.Apply(t.Context())
			return err
		})
	}
	if err := apply(); err == nil || err.Error() != `find device "pin0": Link not found` {
		t.Error("without a device:", err)
	}
	b.tun = openTUN(t, b.Client)
	const want = "ip -6 rule add pref 4010 iif lo ipproto tcp dport 443 lookup 40002 protocol 80: file exists (left by a killed pinproxy? `pinproxy cleanup` removes it)"
	if err := apply(); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := b.Client.Netlink().RuleDel(last); err != nil {
		t.Fatal(err)
	}
	if err := h.Add(t.Context(), c.Captures); err == nil {
		t.Error("added to what is not applied")
	}
	b.tun.file.Close()
	b.same("after the failure", before)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Apply(canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A device on which nothing is captured carries nothing, even some time after it was created.
func TestSilent(t *testing.T) {
	b := newBench(t)
	for _, dev := range []string{"default", "all"} {
		b.Client.Sysctl("net.ipv6.conf."+dev+".router_solicitations", "3")
		b.Client.Sysctl("net.ipv6.conf."+dev+".router_solicitation_delay", "0")
		b.Client.Sysctl("net.ipv6.conf."+dev+".accept_ra", "1")
	}
	b.apply(web())
	if p, err := b.tun.read(time.Second); err == nil {
		t.Errorf("entered the device: %v", p)
	}
	// Not even multicast that names no interface, when the host's own come up after ours.
	eth0, err := b.Client.Netlink().LinkByName("eth0")
	if err == nil {
		err = errors.Join(b.Client.Netlink().LinkSetDown(eth0), b.Client.Netlink().LinkSetUp(eth0))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.Client.Addr("eth0", lab.Client6+"/64")
	b.udp(netip.MustParseAddr("ff05::1"), 9)
	b.tun.empty("multicast")
	if rx, tx := b.Client.Counters(Link); rx+tx != 0 {
		t.Errorf("%d packets received, %d sent", rx, tx)
	}
}
