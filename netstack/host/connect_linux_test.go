package host

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// BenchmarkConnect measures connect(2) where a rule captures the destination, with many other captured
// addresses: policy rules, the longest prefix, and a SYN that the device drops because nobody reads it.
func BenchmarkConnect(b *testing.B) {
	for _, n := range []int{2, 100_000} {
		client := lab.ForTest(b).Topology().Client
		h := benchmarkHostOn(b, client)
		list := many(n)
		if err := h.Add(b.Context(), list); err != nil {
			b.Fatal(err)
		}
		for family, first := range []int{0, 1} {
			b.Run(fmt.Sprintf("ipv%d/addrs=%d", 4+2*family, n), func(b *testing.B) {
				// The same few destinations however many captures there are, as on a real machine.
				var dsts [64]unix.Sockaddr
				for i := range dsts {
					dsts[i] = sockaddr(list[(first+2*i*7919)%n].Dst.Addr())
				}
				err := client.Do(func() error {
					for i := 0; b.Loop(); i++ {
						if err := tryConnect(dsts[i%len(dsts)]); !errors.Is(err, unix.EINPROGRESS) {
							return fmt.Errorf("connect: %w", err)
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: 443}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: 443}
}

// tryConnect starts to connect and gives up at once.
func tryConnect(dst unix.Sockaddr) error {
	family := unix.AF_INET
	if _, ok := dst.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, dst)
}
