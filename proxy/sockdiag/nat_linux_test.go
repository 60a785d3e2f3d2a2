package sockdiag

import (
	"net"
	"net/netip"
	"testing"

	"pinproxy/netstack/lab"
)

// What Leaves says is what the server sees, with NAT and without, and where a mark spares a connection.
func TestLeaves(t *testing.T) {
	for _, nat := range []struct {
		name  string
		set   func(h *lab.Host)
		other bool // another port
	}{
		{"none", func(*lab.Host) {}, false},
		{"that keeps ports", func(h *lab.Host) { h.Masquerade("eth0") }, false},
		{"that changes ports", func(h *lab.Host) { h.Scramble("eth0", 0) }, true},
	} {
		t.Run(nat.name, func(t *testing.T) {
			top := lab.ForTest(t).Topology()
			nat.set(top.Client)
			for _, addr := range []string{lab.Server4, lab.Server6} {
				dst := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
				server := top.Server.Serve(dst.String(), lab.Echo)
				c, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", dst.String())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write([]byte("x"))
				_, _ = c.Read(make([]byte, 1)) // the server has accepted it
				var from netip.AddrPort
				if err := top.Client.Do(func() (err error) {
					from, err = Leaves(c.LocalAddr().(*net.TCPAddr).AddrPort(), dst)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
				seen := server.Seen()
				if len(seen) != 1 || seen[0] != from || (from.Port() != 63999) != nat.other {
					t.Errorf("the server saw %v, Leaves says %v", seen, from)
				}
			}
		})
	}
}
