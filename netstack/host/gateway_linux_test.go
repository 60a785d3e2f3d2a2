package host

import (
	"errors"
	"strings"
	"testing"

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
