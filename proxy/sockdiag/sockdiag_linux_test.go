package sockdiag

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// states returns the states that OnPort reports for the port, in ascending order.
func states(t *testing.T, ns *lab.Host, port uint16) []State {
	t.Helper()
	var list []State
	err := ns.Do(func() error {
		found, err := OnPort(port)
		for _, s := range found {
			list = append(list, s.State)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// TestStates takes one connection through its states, with its listener alongside, over both families.
func TestStates(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Client.Sysctl("net.ipv4.tcp_rfc1337", "1") // otherwise a reset may end a TIME_WAIT on a busy machine
	top.Server.Sysctl("net.ipv4.tcp_timestamps", "0")
	for _, addr := range []string{lab.Server4, lab.Server6} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		top.Server.Serve(dst.String(), lab.Sink)
		c, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", dst.String())
		if err != nil {
			t.Fatal(err)
		}
		local := c.LocalAddr().(*net.TCPAddr).AddrPort()
		local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
		find := func() (s Socket, ok bool) {
			t.Helper()
			if err := top.Client.Do(func() (err error) { s, ok, err = Find(local, dst); return err }); err != nil {
				t.Fatal(err)
			}
			return s, ok
		}
		s, ok := find()
		if !ok || s.State != Established || s.Local != local || s.Remote != dst || s.Left != 0 || s.Orphan() {
			t.Fatalf("%+v, %v", s, ok)
		}
		if owner := Owners([]Socket{s, {}}); owner[0].PID != os.Getpid() || owner[0].Name == "" || owner[1] != (Process{}) {
			t.Errorf("owners %v, want this process and none", owner)
		}
		if got := states(t, top.Client, 63999); !slices.Equal(got, []State{Established}) {
			t.Errorf("%v", got)
		}
		if err := top.Client.Do(func() error {
			list, err := OnPorts(func(port uint16) bool { return port > 63000 })
			if len(list) != 1 || list[0] != s || list[0].ID() == 0 {
				t.Errorf("on ports above 63000: %+v, want %+v", list, s)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			got := states(t, top.Server, 7)
			if slices.Contains(got, Listen) && slices.Contains(got, Established) {
				break
			}
			if time.Now().After(end) { // the server must have received our ACK by now
				t.Fatalf("the server has %v", got)
			}
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = c.Read(make([]byte, 1)) // until the server has closed
		_ = c.Close()
		s, ok = find()
		if !ok || s.State != TimeWait || !s.State.Over() || !s.Orphan() || s.Left < 50*time.Second || s.Left > time.Minute {
			t.Fatalf("after the close: %+v, %v", s, ok)
		}
		lab.NeedKernel(t, 6, 1, "a TIME_WAIT can't be ended")
		destroy := func() error { return top.Client.Do(func() error { return Destroy(s) }) }
		if err := destroy(); err != nil {
			t.Fatal(err)
		}
		if s, ok = find(); ok {
			t.Errorf("after Destroy: %+v", s)
		}
		if err := destroy(); err != nil {
			t.Errorf("a second Destroy: %v", err)
		}
	}
}

// A socket that has replaced the one looked at is left alone.
func TestDestroyMeansTheVerySocket(t *testing.T) {
	top := lab.ForTest(t).Topology()
	dst := netip.MustParseAddrPort(lab.Server4 + ":7")
	top.Server.Serve(dst.String(), lab.Echo)
	var old Socket
	for i := range 2 {
		c, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", dst.String())
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			local := c.LocalAddr().(*net.TCPAddr).AddrPort()
			if err := top.Client.Do(func() (err error) { old, _, err = Find(local, dst); return err }); err != nil {
				t.Fatal(err)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			continue
		}
		if err := top.Client.Do(func() error { return Destroy(old) }); err != nil && !errors.Is(err, unix.ESTALE) {
			t.Error(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Errorf("the connection that came after: %v", err)
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// A namespace is asked from elsewhere. A socket for IPv6 that speaks IPv4 is found as what is on the wire.
func TestNamespace(t *testing.T) {
	top := lab.ForTest(t).Topology()
	dst := netip.MustParseAddrPort(lab.Server4 + ":7")
	top.Server.Serve(dst.String(), lab.Echo)
	diag := -1
	t.Cleanup(func() { _ = unix.Close(diag) })
	var fd int
	var local netip.AddrPort
	if err := top.Client.Do(func() (err error) {
		if diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(dst.Port()), Addr: dst.Addr().As16()}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err == nil {
			mapped := sa.(*unix.SockaddrInet6)
			local = netip.AddrPortFrom(netip.AddrFrom16(mapped.Addr).Unmap(), uint16(mapped.Port))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n := NewNamespace(diag)
	if s, ok, err := n.Find(local, dst); !ok || err != nil || s.State != Established || s.Remote != dst {
		t.Errorf("there: %+v, %v, %v", s, ok, err)
	}
	if s, ok, err := Find(local, dst); ok || err != nil {
		t.Errorf("here: %+v, %v", s, err)
	}
	_ = unix.Close(fd)
	for range 2 { // answers do not mix
		if s, ok, err := n.Find(netip.AddrPortFrom(local.Addr(), local.Port()^1), dst); ok || err != nil {
			t.Errorf("another port: %+v, %v", s, err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	own, err := OpenNamespace()
	if err != nil {
		b.Fatal(err)
	}
	defer own.Close()
	local, dst := netip.MustParseAddrPort("198.51.100.2:63999"), netip.MustParseAddrPort("203.0.113.2:443")
	for name, find := range map[string]func(local, remote netip.AddrPort) (Socket, bool, error){"once": Find, "often": own.Find} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, ok, err := find(local, dst); ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// A socket that is bound and does nothing blocks the port too.
func TestBound(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(sa.(*syscall.SockaddrInet4).Port)
	list, err := OnPort(port)
	if err != nil {
		t.Fatal(err)
	}
	if !lab.KernelIs(6, 8) { // such sockets are not listed
		if err := Bind(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)); !errors.Is(err, syscall.EADDRINUSE) || len(list) != 0 {
			t.Errorf("listed %+v, bind: %v", list, err)
		}
		return
	}
	if len(list) != 1 || list[0].State.Over() || Owners(list)[0].PID != os.Getpid() {
		t.Fatalf("%+v", list)
	}
	if got, want := list[0].String(), "is bound to "+netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
