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

// A program that has the port of the other family is not in the way, whatever net.ipv6.bindv6only says. One that listens
// for both is, and Beside tells them apart.
func TestBindBesideTheOtherFamily(t *testing.T) {
	top := lab.ForTest(t).Topology()
	any4, any6 := netip.MustParseAddrPort("0.0.0.0:64000"), netip.MustParseAddrPort("[::]:64000")
	for _, only := range []string{"1", "0"} {
		top.Client.Sysctl("net.ipv6.bindv6only", only)
		for _, test := range []struct {
			network, addr string
			free4, free6  bool
		}{
			{"tcp4", "0.0.0.0:64000", false, true},
			{"tcp4", lab.Client4 + ":64000", false, true},
			{"tcp6", "[::]:64000", true, false},
			{"tcp6", "[" + lab.Client6 + "]:64000", true, false},
			{"tcp", "[::]:64000", false, false}, // without IPV6_V6ONLY
		} {
			l, err := top.Client.Listen(test.network, test.addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := top.Client.Do(func() error {
				list, err := OnPort(64000)
				if err != nil || len(list) != 1 {
					t.Fatalf("%s: %+v, %v", test.addr, list, err)
				}
				for local, free := range map[netip.AddrPort]bool{any4: test.free4, any6: test.free6} {
					if err := Bind(local); (err == nil) != free || list[0].Beside(local.Addr()) != free {
						t.Errorf("%s to %s, bindv6only=%s: %v, %+v, beside %v; want %v", local, test.addr, only, err, list[0], list[0].Beside(local.Addr()), free)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
		}
	}
}

func TestBeside(t *testing.T) {
	for _, test := range []struct {
		local  string
		v6Only bool
		addr   string
		want   bool
	}{
		{"0.0.0.0:1", false, "0.0.0.0", false},
		{"0.0.0.0:1", false, "192.0.2.1", false},
		{"192.0.2.1:1", false, "0.0.0.0", false},
		{"192.0.2.1:1", false, "192.0.2.1", false},
		{"192.0.2.1:1", false, "192.0.2.2", true},
		{"192.0.2.1:1", false, "::", true},
		{"192.0.2.1:1", false, "2001:db8::1", true},
		{"[::]:1", false, "::", false},
		{"[::]:1", false, "2001:db8::1", false},
		{"[::]:1", false, "192.0.2.1", false},
		{"[::]:1", true, "::", false},
		{"[::]:1", true, "192.0.2.1", true},
		{"[2001:db8::1]:1", false, "2001:db8::2", true},
		{"[2001:db8::1]:1", false, "0.0.0.0", true},
	} {
		s := Socket{State: Listen, Local: netip.MustParseAddrPort(test.local), V6Only: test.v6Only}
		if got := s.Beside(netip.MustParseAddr(test.addr)); got != test.want {
			t.Errorf("%s (IPv6 only: %v) beside %s: %v", test.local, test.v6Only, test.addr, got)
		}
	}
}
