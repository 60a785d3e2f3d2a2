package sockdiag

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"pinproxy/netstack/lab"
)

// Bind reports the same as a dial from the port, as far as bind can tell.
func TestBind(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Server.Serve(":7", lab.Echo)
	top.Server.Serve(":8", lab.Echo)
	try := func(local string) (err error) {
		t.Helper()
		if derr := top.Client.Do(func() error { err = Bind(netip.MustParseAddrPort(local)); return nil }); derr != nil {
			t.Fatal(derr)
		}
		return err
	}
	for _, test := range []struct{ any, own, server string }{
		{"0.0.0.0", lab.Client4, lab.Server4},
		{"[::]", "[" + lab.Client6 + "]", "[" + lab.Server6 + "]"},
	} {
		for _, local := range []string{test.any + ":63999", test.own + ":63999", test.any + ":22"} {
			if err := try(local); err != nil {
				t.Errorf("%s: %v", local, err)
			}
		}
		shared, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", test.server+":7")
		if err != nil {
			t.Fatal(err)
		}
		if err := try(test.any + ":63999"); err != nil {
			t.Errorf("a port that others share: %v", err)
		}
		_ = shared.Close()
		foreign, err := top.Client.Dial(t.Context(), "tcp", test.server+":8")
		if err != nil {
			t.Fatal(err)
		}
		taken := netip.MustParseAddrPort(foreign.LocalAddr().String())
		err = try(netip.AddrPortFrom(netip.MustParseAddrPort(test.any+":1").Addr(), taken.Port()).String())
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("the port of a connection without SO_REUSEADDR: %v", err)
		}
		_ = foreign.Close()
		l, err := top.Client.Listen("tcp", test.own+":64000")
		if err != nil {
			t.Fatal(err)
		}
		for _, local := range []string{test.any + ":64000", test.own + ":64000"} {
			if err := try(local); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s, beside a listener: %v", local, err)
			}
		}
		_ = l.Close()
	}
	for _, local := range []string{"192.0.2.9:63999", "[2001:db8::9]:63999"} {
		if err := try(local); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("%s: %v", local, err)
		}
	}
}

// Where the host keeps IPv4 and IPv6 apart, an IPv4 program on the port is not in the way of a dial over IPv6.
func TestBindWithFamiliesApart(t *testing.T) {
	top := lab.ForTest(t).Topology()
	for _, apart := range []string{"1", "0"} {
		top.Client.Sysctl("net.ipv6.bindv6only", apart)
		l, err := top.Client.Listen("tcp4", "0.0.0.0:64000")
		if err != nil {
			t.Fatal(err)
		}
		if derr := top.Client.Do(func() error { err = Bind(netip.MustParseAddrPort("[::]:64000")); return nil }); derr != nil {
			t.Fatal(derr)
		}
		if free := err == nil; free != (apart == "1") {
			t.Errorf("bindv6only=%s: %v", apart, err)
		}
		_ = l.Close()
	}
}
