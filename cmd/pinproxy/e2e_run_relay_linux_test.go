package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// What a command does without a connection.

// ask sends a datagram of a given size to an address and prints the size of the answer, or the errno. With "off" in
// place of a size it sends one and ends at once.
func ask() {
	size := 0
	_, err := fmt.Sscan(os.Args[1], &size)
	quick := err != nil
	for _, addr := range os.Args[2:] {
		c, err := net.Dial("udp", addr)
		if err == nil {
			_, err = c.Write(make([]byte, size))
		}
		if quick && err == nil {
			continue
		}
		n := 0
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			n, err = c.Read(make([]byte, 1<<16))
		}
		if err != nil {
			fmt.Println(errnoText(err))
		} else {
			fmt.Println(n)
		}
	}
}

func TestRunDatagrams(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		got := make(chan string, 10)
		for _, addr := range []string{at(lab.Server4, 7), at(lab.Server6, 7)} {
			s, err := w.Server.ListenPacket("udp", addr)
			if err != nil {
				w.t.Fatal(err)
			}
			go func() { // ends with the network
				b := make([]byte, 1<<16)
				for n, from, err := s.ReadFrom(b); err == nil; n, from, err = s.ReadFrom(b) {
					if n == 0 {
						got <- from.String()
					}
					_, _ = s.WriteTo(b[:n], from)
				}
			}()
		}
		for _, size := range []string{"1", "1400", "9000", "65000"} {
			w.runs(w.by(u, "--rule", "*:7=63999", "--", "ask", size, at(lab.Server4, 7), at(lab.Server6, 7)), size+"\n"+size+"\n")
		}
		w.runs(w.by(u, "--rule", "*:7=63999", "--", "ask", "1", at(lab.Server4, 8), at(lab.Server6, 8)), "connection refused\nconnection refused\n")
		// A datagram that is sent just before the command's end.
		for range 5 {
			w.runs(w.by(u, "--rule", "*:7=63999", "--", "ask", "off", at(lab.Server4, 7)), "")
			select {
			case <-got:
			case <-time.After(patience):
				w.t.Error("the last datagram got lost")
			}
		}
	})
}

// The host's loopback, by datagrams. A stand-in for a name server serves only as that.
func TestRunDatagramsToStandIns(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		s, err := w.Client.ListenPacket("udp", "127.0.0.1:7")
		if err != nil {
			w.t.Fatal(err)
		}
		go sendBack(s)
		w.runs(w.by(u, "--rule", "*:7=63999", "--host-loopback", "192.0.2.77", "--", "ask", "5", "192.0.2.77:7", "127.0.0.1:7", "192.0.0.53:7"),
			"5\nconnection refused\nconnection refused\n")
	})
}

// pinging sends an echo request to each address, through the socket for unprivileged users, and prints the type of
// the answer, or the errno. Not every machine has ping(8).
func pinging() {
	for _, text := range os.Args[1:] {
		kind, err := pingOnce(netip.MustParseAddr(text))
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("type", kind)
		}
	}
}

func pingOnce(addr netip.Addr) (kind byte, err error) {
	domain, proto, request := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var to unix.Sockaddr
	if addr.Is6() {
		domain, proto, request = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		to = &unix.SockaddrInet6{Addr: addr.As16()}
	} else {
		to = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return 0, err
	}
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
	if _, err := unix.Write(fd, append([]byte{request, 0, 0, 0, 0, 0, 0, 1}, "hello"...)); err != nil {
		return 0, err
	}
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err == nil && string(b[8:n]) != "hello" {
		err = fmt.Errorf("answer %q", b[:n])
	}
	return b[0], err
}

func TestRunPing(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		args := []string{"--rule", "*:7=63999", "--", "pinging", lab.Server4, lab.Server6}
		w.Client.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
		w.runs(w.by(u, args...), "type 0\ntype 129\n")
		w.Client.Sysctl("net.ipv4.ping_group_range", "1 0")
		got := w.result(w.by(u, args...))
		if strings.Contains(got.out, "type") || !strings.Contains(got.said, "ping_group_range") {
			w.t.Errorf("where the host does not allow it: %+v", got)
		}
	})
}
