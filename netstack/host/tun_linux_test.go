package host

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// tun is the device, without a netstack behind it.
type tun struct {
	t    testing.TB
	file *os.File
}

func openTUN(t testing.TB, h *lab.Host) *tun {
	t.Helper()
	var file *os.File
	err := h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(Link)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), Link)
		return nil
	})
	if err != nil {
		t.Fatal("open tun:", err)
	}
	t.Cleanup(func() { file.Close() })
	return &tun{t, file}
}

// next waits for the next packet that an application has sent into the device, and returns it.
func (d *tun) next() packet {
	d.t.Helper()
	p, err := d.read(patience)
	if err != nil {
		d.t.Fatal("nothing entered the device:", err)
	}
	return p
}

// empty reports packets that have entered the device. They enter it during the sender's system call, so there
// is nothing to wait for.
func (d *tun) empty(what string) {
	d.t.Helper()
	for d.holds() {
		p, err := d.read(patience)
		if err != nil {
			d.t.Fatal(err)
		}
		d.t.Errorf("%s: entered the device: %v", what, p)
	}
}

// drain discards what has entered the device.
func (d *tun) drain() {
	for d.holds() {
		if _, err := d.read(patience); err != nil {
			return
		}
	}
}

// holds reports whether a packet can be read.
func (d *tun) holds() bool {
	raw, err := d.file.SyscallConn()
	if err != nil {
		d.t.Fatal(err)
	}
	return readable(d.t, raw, 0)
}

// readable reports whether there is something to read, now or within wait. A Go deadline would pass while the
// test has no processor, and report false although the file has data. poll(2) looks at least once.
func readable(t testing.TB, file syscall.RawConn, wait time.Duration) (yes bool) {
	t.Helper()
	err := file.Control(func(fd uintptr) {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
			if err != unix.EINTR {
				yes = n > 0
				return
			}
		}
	})
	return yes && err == nil
}

func (d *tun) read(wait time.Duration) (packet, error) {
	b := make([]byte, 65536)
	d.file.SetReadDeadline(time.Now().Add(wait))
	n, err := d.file.Read(b)
	return packet(b[:n]), err
}

// refuse answers a SYN with a reset.
func (d *tun) refuse(syn packet) {
	d.t.Helper()
	if _, err := d.file.Write(syn.reset()); err != nil {
		d.t.Fatal(err)
	}
}

// packet is an IP packet with a TCP or UDP header and no options or extension headers before it.
type packet []byte

func (p packet) isV6() bool { return p[0]>>4 == 6 }

func (p packet) proto() byte {
	if p.isV6() {
		return p[6]
	}
	return p[9]
}

func (p packet) transport() []byte {
	if p.isV6() {
		return p[40:]
	}
	return p[20:]
}

func (p packet) addrs() (src, dst []byte) {
	if p.isV6() {
		return p[8:24], p[24:40]
	}
	return p[12:16], p[16:20]
}

func (p packet) src() netip.AddrPort {
	src, _ := p.addrs()
	a, _ := netip.AddrFromSlice(src)
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p.transport()))
}

func (p packet) dst() netip.AddrPort {
	_, dst := p.addrs()
	a, _ := netip.AddrFromSlice(dst)
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p.transport()[2:]))
}

func (p packet) String() string {
	if len(p) < 24 {
		return fmt.Sprintf("% x", []byte(p))
	}
	return fmt.Sprintf("%v → %v, protocol %d", p.src(), p.dst(), p.proto())
}

// reset returns the answer of a closed port (RFC 9293, 3.5.2).
func (p packet) reset() packet {
	header := len(p) - len(p.transport())
	r := make(packet, header+20)
	copy(r, p[:header])
	from, to := p.addrs()
	src, dst := r.addrs()
	copy(src, to)
	copy(dst, from)
	if p.isV6() {
		binary.BigEndian.PutUint16(r[4:], 20)
	} else {
		binary.BigEndian.PutUint16(r[2:], 40)
		r[10], r[11] = 0, 0
		binary.BigEndian.PutUint16(r[10:], ^sum(0, r[:20]))
	}
	in, out := p.transport(), r.transport()
	copy(out[0:], in[2:4])
	copy(out[2:], in[0:2])
	binary.BigEndian.PutUint32(out[8:], binary.BigEndian.Uint32(in[4:])+1)
	out[12], out[13] = 5<<4, 0x14 // RST, ACK
	pseudo := sum(uint32(protoTCP)+20, src)
	binary.BigEndian.PutUint16(out[16:], ^sum(uint32(sum(uint32(pseudo), dst)), out))
	return r
}

// sum adds b to acc, the sum of an Internet checksum.
func sum(acc uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		acc += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}
