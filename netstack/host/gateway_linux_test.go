package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"pinproxy/netstack/lab"
)

// The kernel takes a device's alternative name in a policy rule, but does not find the device by it later.
func TestGatewayByAnotherName(t *testing.T) {
	lab.NeedKernel(t, 5, 5, "a device has one name")
	b := newBench(t)
	alternative := func(name string) {
		t.Helper()
		eth0, err := b.Client.Netlink().LinkByName("eth0")
		if err == nil {
			err = b.Client.Netlink().LinkAddAltName(eth0, name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c := web()
	c.Gateways = []string{"enp9s9"}
	b.apply(c)
	alternative("enp9s9")
	if _, err := b.host.look(dirtGateways); err != nil {
		t.Error(err)
	}
	if g := b.host.Gateways(); len(g) != 1 || g[0].Index != 0 || strings.Contains(b.logs.String(), "is captured") {
		t.Errorf("gateways %+v; log:\n%s", g, b.logs)
	}
	if err := b.undo(t.Context()); err != nil {
		t.Fatal(err)
	}

	before := b.snapshot()
	for name, try := range map[string]func() error{
		"start": func() error { _, err := b.host.Apply(t.Context()); return err },
		"look":  func() error { _, err := LookGateways(c.Gateways); return err },
	} {
		err := b.Client.Do(try)
		demand, ok := errors.AsType[*DemandError](err)
		if !ok || !strings.Contains(demand.What, "another name of eth0") || !strings.Contains(demand.Hint, "--gateway eth0") {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.same("after the error", before)
}

// A bridge without IPv6 has an address all the same, for its link.
func TestGatewayIPv6(t *testing.T) {
	b := newBench(t)
	nl := b.Client.Netlink()
	err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	br0, lerr := nl.LinkByName("br0")
	local, aerr := netlink.ParseAddr("fe80::1/64")
	if err := errors.Join(err, lerr, aerr); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(nl.LinkSetUp(br0), nl.AddrAdd(br0, local)); err != nil {
		t.Fatal(err)
	}
	var list []Gateway
	if err := b.Client.Do(func() (err error) { list, err = LookGateways([]string{"eth0", "br0"}); return err }); err != nil {
		t.Fatal(err)
	}
	if !list[0].IPv6 || list[1].IPv6 {
		t.Errorf("%+v; only eth0 has an address of IPv6", list)
	}
}
