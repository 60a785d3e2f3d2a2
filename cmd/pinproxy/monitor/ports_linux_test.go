package monitor

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Whose a socket is takes a search through all processes. Sockets of our own are known by their mark.
func TestOwnSocketsAreKnown(t *testing.T) {
	const mark, port = 0x70, 63999
	host := lab.ForTest(t).Host("host")
	if err := host.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = unix.Close(fd) })
			var any unix.Sockaddr = &unix.SockaddrInet4{Port: port}
			if family == unix.AF_INET6 {
				any = &unix.SockaddrInet6{Port: port}
				if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
					return err
				}
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
				return err
			}
			if err := unix.Bind(fd, any); err != nil {
				return err
			}
			if err := unix.Listen(fd, 1); err != nil { // before Linux 6.8, sockets that are only bound are not listed
				return err
			}
		}
		for _, ours := range []uint32{0, mark, mark + 1} {
			asked := 0
			m := testMonitor(t)
			m.Dialer = proxy.Sockets{Mark: ours, Owners: func(list []sockdiag.Socket) []sockdiag.Process {
				asked += len(list)
				return make([]sockdiag.Process, len(list))
			}}
			found := m.sockets(rules.NewPortSet(rules.PortRange{First: port, Last: port}), map[[2]netip.AddrPort]bool{})
			want := 2
			if ours == mark {
				want = 0
			}
			if len(found) != want || asked != want {
				t.Errorf("mark %#x: found %v and asked for %d owners, want %d", ours, found, asked, want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
