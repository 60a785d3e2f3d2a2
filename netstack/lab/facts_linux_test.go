package lab_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// These tests check what pinproxy assumes about how Linux binds source ports, each in a fresh namespace. A kernel
// that breaks one of these facts breaks pinproxy. Kernel functions are named where they cause the behaviour.

// family is one of the two loopbacks on which every fact is checked.
type family struct {
	name   string
	number uint8
	ip     netip.Addr
}

var families = []family{
	{"IPv4", unix.AF_INET, netip.MustParseAddr("127.0.0.1")},
	{"IPv6", unix.AF_INET6, netip.MustParseAddr("::1")},
}

const pin = 63999

func (f family) at(port uint16) string { return netip.AddrPortFrom(f.ip, port).String() }

// onBoth checks a fact on both families, each on its own host with echo servers on ports 7, 8 and 9.
func onBoth(t *testing.T, fact func(t *testing.T, h *lab.Host, f family)) {
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h := lab.ForTest(t).Host("solo")
			// On a busy machine an ACK may take so long that the peer sends its FIN twice. The answer to the second
			// FIN gets a reset in return, which would end the TIME_WAIT (RFC 1337).
			h.Sysctl("net.ipv4.tcp_rfc1337", "1")
			for _, port := range []uint16{7, 8, 9} {
				h.Serve(f.at(port), lab.Echo)
			}
			fact(t, h, f)
		})
	}
}

// dial connects from the pin with SO_REUSEADDR.
func dial(t *testing.T, h *lab.Host, f family, port uint16) (*net.TCPConn, error) {
	c, err := h.DialFrom(t.Context(), "tcp", f.at(pin), f.at(port))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

func mustDial(t *testing.T, h *lab.Host, f family, port uint16) *net.TCPConn {
	t.Helper()
	c, err := dial(t, h, f, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// plainDial connects from the pin without SO_REUSEADDR, as Go's dialer does.
func plainDial(h *lab.Host, f family, port uint16) (c net.Conn, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.ip, pin))}
	err = h.Do(func() error {
		c, err = d.Dial("tcp", f.at(port))
		return err
	})
	return c, err
}

// closeFirst closes c in order, before the peer does, and waits for the resulting TIME_WAIT.
func closeFirst(t *testing.T, h *lab.Host, f family, c net.Conn) {
	t.Helper()
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
	port := c.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
	c.Close()
	waitState(t, h, f, port, netlink.TCP_TIME_WAIT)
}

// waitState waits until the socket from the pin to a port is in a state; 0 means no socket.
func waitState(t *testing.T, h *lab.Host, f family, port uint16, want uint8) {
	t.Helper()
	state := func() uint8 {
		sockets, err := h.Netlink().SocketDiagTCP(f.number)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sockets {
			if s.ID.SourcePort == pin && s.ID.DestinationPort == port {
				return s.State
			}
		}
		return 0
	}
	end := time.Now().Add(30 * time.Second)
	for state() != want {
		if time.Now().After(end) {
			t.Fatalf("socket from %d to %d is in state %d, want %d", pin, port, state(), want)
		}
		time.Sleep(time.Millisecond)
	}
}

// Fact 1: inet_csk_bind_conflict lets sockets share a port if all of them have SO_REUSEADDR and none listens.
func TestFlowsToDifferentDestinationsShareAPort(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		for _, port := range []uint16{7, 8, 9} {
			if c := mustDial(t, h, f, port); c.LocalAddr().String() != f.at(pin) {
				t.Errorf("left from %v", c.LocalAddr())
			}
		}
		if c, err := plainDial(h, f, 9); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("without SO_REUSEADDR: %v, %v", c, err)
		}
	})
}

// Fact 1: a TIME_WAIT remembers whether its socket had SO_REUSEADDR (inet_twsk_alloc copies it).
func TestOneDialWithoutReuseAddrSpoilsThePort(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		closeFirst(t, h, f, mustDial(t, h, f, 7))
		mustDial(t, h, f, 8).Close() // our own TIME_WAIT is no obstacle
		waitState(t, h, f, 8, netlink.TCP_TIME_WAIT)
		if err := destroy(h, f, 7); err != nil {
			t.Fatal(err)
		}
		if err := destroy(h, f, 8); err != nil {
			t.Fatal(err)
		}

		c, err := plainDial(h, f, 7)
		if err != nil {
			t.Fatal(err)
		}
		closeFirst(t, h, f, c)
		if _, err := dial(t, h, f, 8); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("dial elsewhere: %v, want EADDRINUSE", err)
		}
	})
}

// Fact 2: __inet_check_established.
func TestLiveTupleCannotBeHadTwice(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		mustDial(t, h, f, 7)
		if _, err := dial(t, h, f, 7); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("second flow: %v, want EADDRNOTAVAIL", err)
		}
	})
}

// Fact 3: tcp_twsk_unique. A dial from a bound port passes it no tw to decide by, so tcp_tw_reuse is not consulted.
func TestTimeWaitWithTimestampsIsReusedAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		for _, reuse := range []string{"0", "1", "2"} {
			h.Sysctl("net.ipv4.tcp_tw_reuse", reuse)
			closeFirst(t, h, f, mustDial(t, h, f, 7))
			c, err := dial(t, h, f, 7)
			if err != nil {
				t.Fatalf("tcp_tw_reuse %s: %v", reuse, err)
			}
			closeFirst(t, h, f, c)
		}
	})
}

// Fact 3, the case of our users: without timestamps there is no reuse.
func TestTimeWaitWithoutTimestampsBlocksTheTuple(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.tcp_timestamps", "0")
		for _, reuse := range []string{"0", "1", "2"} {
			h.Sysctl("net.ipv4.tcp_tw_reuse", reuse)
			port := uint16(7)
			closeFirst(t, h, f, mustDial(t, h, f, port))
			if _, err := dial(t, h, f, port); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("tcp_tw_reuse %s: %v, want EADDRNOTAVAIL", reuse, err)
			}
			mustDial(t, h, f, 8).Close() // another destination is free
			waitState(t, h, f, 8, netlink.TCP_TIME_WAIT)
			for _, port := range []uint16{7, 8} {
				if err := destroy(h, f, port); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Fact 3: if we have closed and the peer has not, the kernel keeps a TIME_WAIT socket whose substate is FIN_WAIT2
// (tcp_close), and tcp_twsk_unique treats it the same. With timestamps the tuple is available again at once. The new
// SYN resets, by way of a challenge ACK (RFC 5961, section 4), what the peer still had open.
func TestFinWait2WithTimestampsIsReusedAtTheOldFlowsCost(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		redialled := make(chan bool)
		old := make(chan error, 2)
		h.Serve(f.at(10), func(c net.Conn) {
			<-redialled
			_, err := c.Write([]byte{0})
			old <- err
		})
		mustDial(t, h, f, 10).Close()
		waitState(t, h, f, 10, netlink.TCP_FIN_WAIT2)
		mustDial(t, h, f, 10)
		close(redialled)
		// Of the two flows that the server has by now, the new one can be written to.
		if err := errors.Join(<-old, <-old); !errors.Is(err, unix.EPIPE) {
			t.Errorf("peer's old flow is well: %v, want EPIPE", err)
		}
	})
}

// Fact 3: without timestamps FIN_WAIT2 holds the tuple as TIME_WAIT does, and can also be destroyed.
func TestFinWait2WithoutTimestampsBlocksTheTuple(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.tcp_timestamps", "0")
		closing := make(chan bool)
		defer close(closing)
		h.Serve(f.at(10), func(net.Conn) { <-closing })
		mustDial(t, h, f, 10).Close()
		waitState(t, h, f, 10, netlink.TCP_FIN_WAIT2)
		if _, err := dial(t, h, f, 10); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("in FIN_WAIT2: %v, want EADDRNOTAVAIL", err)
		}
		if err := destroy(h, f, 10); err != nil {
			t.Fatal(err)
		}
		mustDial(t, h, f, 10)
	})
}

// Fact 3: while our FIN, or data before it, is in flight, the tuple is a live one, with or without timestamps.
func TestFinUnderWayBlocksTheTupleForAMoment(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		reading := make(chan bool)
		h.Serve(f.at(10), func(c net.Conn) {
			<-reading
			lab.Sink(c)
		})
		c := mustDial(t, h, f, 10)
		fill(c)
		c.Close()
		waitState(t, h, f, 10, netlink.TCP_FIN_WAIT1)
		if _, err := dial(t, h, f, 10); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("in FIN_WAIT1: %v, want EADDRNOTAVAIL", err)
		}
		close(reading)
		waitState(t, h, f, 10, netlink.TCP_TIME_WAIT)
		mustDial(t, h, f, 10)
	})
}

// fill writes until the peer, which does not read, and this side have no buffer space left. It returns how much it
// wrote.
func fill(c *net.TCPConn) (all int64) {
	for idle := 0; idle < 2; { // a single one may be a pause of a busy machine, not of the connection
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, _ := io.Copy(c, io.LimitReader(zeroes{}, 1<<30))
		if all += n; n > 0 {
			idle = 0
		} else {
			idle++
		}
	}
	return all
}

// Fact 4: tcp_abort, through sock_diag, removes a TIME_WAIT and nothing else.
func TestSockDestroyEndsTimeWait(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.tcp_timestamps", "0")
		other := mustDial(t, h, f, 8)
		for range 100 {
			closeFirst(t, h, f, mustDial(t, h, f, 7))
			if err := destroy(h, f, 7); err != nil {
				t.Fatal(err)
			}
		}
		if err := destroy(h, f, 7); !errors.Is(err, unix.ENOENT) {
			t.Errorf("destroy what is not there: %v, want ENOENT", err)
		}
		if answer, err := ask(other); answer != "?" {
			t.Errorf("another flow of the port: %q, %v", answer, err)
		}
	})
}

// Fact 4: look before you destroy.
func TestSockDestroyEndsLiveConnections(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		c := mustDial(t, h, f, 7)
		if err := destroy(h, f, 7); err != nil {
			t.Fatal(err)
		}
		if answer, err := ask(c); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("flow is at %q, %v, want ECONNABORTED", answer, err)
		}
	})
}

// destroy sends SOCK_DESTROY for the socket from the pin to a port. Package netlink's own function supports only
// IPv4.
func destroy(h *lab.Host, f family, port uint16) error {
	return h.Do(func() error {
		req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
		req.AddData(inetDiagReq{f.number, netip.AddrPortFrom(f.ip, pin), netip.AddrPortFrom(f.ip, port)})
		_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		return err
	})
}

// inetDiagReq is struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h) for TCP, with no cookie.
type inetDiagReq struct {
	family   uint8
	src, dst netip.AddrPort
}

func (r inetDiagReq) Len() int { return 56 }

func (r inetDiagReq) Serialize() []byte {
	b := make([]byte, 8, r.Len())
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	b = binary.BigEndian.AppendUint16(b, r.src.Port())
	b = binary.BigEndian.AppendUint16(b, r.dst.Port())
	for _, a := range []netip.Addr{r.src.Addr(), r.dst.Addr()} {
		b = append(b, a.AsSlice()...)
		b = append(b, make([]byte, 16-a.BitLen()/8)...)
	}
	b = append(b, 0, 0, 0, 0)                          // interface
	return append(b, bytes.Repeat([]byte{0xff}, 8)...) // INET_DIAG_NOCOOKIE
}

// Fact 5: the side that closes first has the TIME_WAIT.
func TestNoWaitIfThePeerClosedFirst(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.tcp_timestamps", "0")
		h.Serve(f.at(10), lab.Source(0))
		for range 10 {
			c := mustDial(t, h, f, 10)
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Fatal(err)
			}
			c.Close()
			waitState(t, h, f, 10, 0)
		}
	})
}

// Fact 5: SO_LINGER 0 leaves no TIME_WAIT, but data that the peer had no room for is lost.
func TestResetLosesData(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.tcp_timestamps", "0")
		reset := make(chan bool)
		got := make(chan int64, 1)
		h.Serve(f.at(10), func(c net.Conn) {
			<-reset
			n, _ := io.Copy(io.Discard, c)
			got <- n
		})
		c := mustDial(t, h, f, 10)
		sent := fill(c)
		c.SetLinger(0)
		c.Close()
		waitState(t, h, f, 10, 0)
		close(reset)
		if n := <-got; n >= sent {
			t.Errorf("peer got %d of %d bytes", n, sent)
		}
		mustDial(t, h, f, 10)
	})
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Fact 6: inet_sk_get_local_port_range uses the socket's range only where it lies within the namespace's range.
func TestLocalPortRangeIsIgnoredOutsideTheSystemsRange(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		for want, inside := range map[uint32]bool{pin: false, 40000: true} {
			d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
				c.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, int(want|want<<16))
				})
				return err
			}}
			if err := h.Do(func() error {
				c, err := d.Dial("tcp", f.at(7))
				if err != nil {
					return err
				}
				defer c.Close()
				got := c.LocalAddr().(*net.TCPAddr).Port
				if (got == int(want)) != inside {
					t.Errorf("asked for %d, got %d", want, got)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	})
}

// Fact 7: a socket that has our port without SO_REUSEADDR, or listens on it, blocks it towards all destinations.
func TestOthersOnOurPortBlockIt(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		h.Sysctl("net.ipv4.ip_local_port_range", fmt.Sprintf("%d %d", pin, pin))
		c, err := h.Dial(t.Context(), "tcp", f.at(8)) // gets the only port there is
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial(t, h, f, 7); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("beside an ephemeral port: %v, want EADDRINUSE", err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()

		l, err := h.Listen("tcp", f.at(pin))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dial(t, h, f, 7); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("beside a listener: %v, want EADDRINUSE", err)
		}
		l.Close()

		h.Sysctl("net.ipv4.ip_local_reserved_ports", fmt.Sprint(pin))
		if c, err := h.Dial(t.Context(), "tcp", f.at(8)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("ephemeral port though reserved: %v, %v", c, err)
		}
		mustDial(t, h, f, 7)
	})
}

// Fact 8: tcp_rcv_synsent_state_process performs the simultaneous open of RFC 9293, section 3.5, with itself.
func TestSourceEqualToDestinationConnectsToItself(t *testing.T) {
	onBoth(t, func(t *testing.T, h *lab.Host, f family) {
		c := mustDial(t, h, f, pin)
		if answer, err := ask(c); answer != "?" || c.RemoteAddr().String() != c.LocalAddr().String() {
			t.Errorf("talking to oneself: %q, %v", answer, err)
		}
	})
}

// ask sends one byte and reads the answer of the other end, an Echo or a named host.
func ask(c net.Conn) (string, error) {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}
