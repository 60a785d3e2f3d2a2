package proxy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"pinproxy/netstack/lab"
)

// A trial leaves from the pin and leaves nothing behind, so that the next one can follow at once.
func TestTry(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Client.Sysctl("net.ipv4.tcp_timestamps", "0") // a TIME_WAIT would be in the way
	server := top.Server.Serve(":7", lab.Echo)
	for _, addr := range []string{lab.Server4, lab.Server6} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		pin := netip.AddrPortFrom(netip.IPv4Unspecified(), 63999)
		if dst.Addr().Is6() {
			pin = netip.AddrPortFrom(netip.IPv6Unspecified(), 63999)
		}
		for range 3 {
			trial, err := try(t, top.Client, pin, dst)
			seen := server.Seen()
			if err != nil || trial.Took <= 0 || trial.Local.Port() != 63999 || trial.Local != seen[len(seen)-1] {
				t.Fatalf("%s: %+v, %v; the server saw %v", addr, trial, err, seen)
			}
		}
	}
}

// What a trial meets is reported with the same words and hint as on a flow's log line.
func TestTryFails(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Server.Serve(":7", lab.Echo)
	dst := netip.MustParseAddrPort(lab.Server4 + ":7")
	l, err := top.Client.Listen("tcp", ":63999")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		pin, dst    string
		errno       error
		cause, hint string
	}{
		{"0.0.0.0:63998", lab.Server4 + ":4", syscall.ECONNREFUSED, "connection refused", ""},
		{"0.0.0.0:63999", dst.String(), syscall.EADDRINUSE, "address already in use", ""}, // by this very process
		{"192.0.2.9:63998", dst.String(), syscall.EADDRNOTAVAIL, "source address 192.0.2.9 is not on this host", "ip address add"},
	} {
		_, err := try(t, top.Client, netip.MustParseAddrPort(test.pin), netip.MustParseAddrPort(test.dst))
		if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.cause) || !strings.Contains(Hint(err), test.hint) || (test.hint == "") != (Hint(err) == "") {
			t.Errorf("%s to %s: %v, hint %q", test.pin, test.dst, err, Hint(err))
		}
	}
}

func try(t *testing.T, h *lab.Host, pin, dst netip.AddrPort) (trial Trial, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if derr := h.Do(func() error { trial, err = Sockets{Endings: NewEndings()}.Try(ctx, pin, dst); return nil }); derr != nil {
		t.Fatal(derr)
	}
	return trial, err
}
