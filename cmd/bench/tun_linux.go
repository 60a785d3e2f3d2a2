package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// The minimum cost of a TUN device and a socket. `bench tun` reads packets of up to 64 KiB from a device with
// segmentation offload and writes their payload to a socket, and does the same in the other direction, with no copy
// in between. Instead of a TCP stack it has a handful of counters for each flow: it acknowledges what it has read,
// and sends no more than the application's kernel has room for. A lost packet stays lost.

const (
	tunName   = "tun0"
	tunDevice = "/dev/net/tun"

	vnetSize   = 10 // struct virtio_net_hdr
	ipSize     = 20
	tcpSize    = 20
	headerSize = vnetSize + ipSize + tcpSize
	maxPayload = 65535 - ipSize - tcpSize
	tunMSS     = 1460

	// tunWindow is how much we let the application have in flight, in units of 1<<tunShift: less than the device's
	// queue of 500 packets holds, as long as the packets are large.
	tunShift  = 7
	tunWindow = 4<<20>>tunShift - 1

	tcpFIN, tcpSYN, tcpRST, tcpPSH, tcpACK = 1, 2, 4, 8, 16
)

// tunMain runs this binary as `bench tun` until it is killed.
func tunMain(stderr io.Writer) int {
	fd, err := openTUN()
	if err == nil {
		t := &tun{fd: fd, flows: make(map[netip.AddrPort]*tunFlow)}
		err = t.serve()
	}
	fmt.Fprintf(stderr, "tun: %v\n", err)
	return 1
}

func openTUN() (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	r, err := unix.NewIfreq(tunName)
	if err != nil {
		return -1, err
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = errors.Join(
		unix.IoctlIfreq(fd, unix.TUNSETIFF, r),
		unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetSize),
		unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6))
	if err != nil {
		return -1, fmt.Errorf("set up %s: %w", tunName, err)
	}
	return fd, nil
}

type tun struct {
	fd    int
	flows map[netip.AddrPort]*tunFlow // keyed by the application's end
}

// tunFlow is a flow of one application. The reader of the device serves it, and a goroutine of its own serves the
// direction down to the application.
type tunFlow struct {
	fd       int
	app, dst netip.AddrPort
	up       socket
	shift    uint8  // of the application's windows
	expects  uint32 // next sequence number from the application; the reader's
	ended    bool   // the application has sent its FIN; the reader's

	mu     sync.Mutex
	room   sync.Cond
	next   uint32 // next sequence number to the application
	limit  uint32 // up to which the application has room
	acked  uint32 // up to which we have everything from the application
	closed bool
	ways   int // directions that have not ended
}

// serve reads from the device. If writing to a socket blocks, serve blocks, and with it the application.
func (t *tun) serve() error {
	packet := make([]byte, headerSize+65536)
	for {
		n, err := unix.Read(t.fd, packet)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", tunName, err)
		}
		if ip := packet[vnetSize:n]; len(ip) >= ipSize+tcpSize && ip[0] == 0x45 && ip[9] == unix.IPPROTO_TCP {
			t.segment(ip)
		}
	}
}

// segment handles a segment from the application.
func (t *tun) segment(ip []byte) {
	tcp := ip[ipSize:]
	app := netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), binary.BigEndian.Uint16(tcp))
	seq, ack := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	flags, payload := tcp[13], tcp[tcp[12]>>4*4:]
	f := t.flows[app]
	switch {
	case flags&tcpSYN != 0:
		if f != nil && !f.ended {
			f.end()
		}
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:])), binary.BigEndian.Uint16(tcp[2:]))
		if f = t.open(app, dst, seq, windowShift(tcp)); f != nil {
			t.flows[app] = f
		}
		return
	case f == nil:
		return
	case flags&tcpRST != 0:
		if !f.ended {
			f.end()
		}
		delete(t.flows, app)
		return
	case seq != f.expects: // a repetition of what we have, or a gap that can't be filled
		f.acknowledge()
		return
	}
	f.mayGo(ack, uint32(binary.BigEndian.Uint16(tcp[14:]))<<f.shift)
	if len(payload) > 0 && !f.ended {
		if f.up.writeFull(payload) != nil {
			f.send(make([]byte, headerSize), tcpACK|tcpRST)
			f.end()
			delete(t.flows, app)
			return
		}
		f.expects += uint32(len(payload))
		f.acknowledge()
	}
	if flags&tcpFIN != 0 && !f.ended {
		f.ended = true
		f.expects++
		f.acknowledge()
		_ = unix.Shutdown(int(f.up), unix.SHUT_WR)
		f.done()
	}
}

// windowShift returns the window scale option of a SYN.
func windowShift(tcp []byte) uint8 {
	for o := tcp[tcpSize : tcp[12]>>4*4]; len(o) > 0; {
		switch kind := o[0]; {
		case kind == 1:
			o = o[1:]
		case kind == 0 || len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return 0
		case kind == 3 && o[1] == 3:
			return o[2]
		default:
			o = o[o[1]:]
		}
	}
	return 0
}

// open connects to dst and answers a SYN, or does nothing.
func (t *tun) open(app, dst netip.AddrPort, seq uint32, shift uint8) *tunFlow {
	up, err := newSocket(socketPatience)
	if err != nil {
		return nil
	}
	err = unix.BindToDevice(int(up), uplink)
	if err == nil {
		err = up.connect(dst)
	}
	if err != nil {
		up.close()
		return nil
	}
	_ = up.setPatience(0)
	f := &tunFlow{fd: t.fd, app: app, dst: dst, up: up, expects: seq + 1, acked: seq + 1, shift: shift, ways: 2}
	f.room.L = &f.mu
	b := make([]byte, headerSize+8)
	copy(b[headerSize:], []byte{2, 4, tunMSS >> 8, tunMSS & 255, 1, 3, 3, tunShift})
	f.put(b, tcpSYN|tcpACK, 65535)
	f.next++
	f.limit = f.next
	go f.down()
	return f
}

// down sends what the socket provides, as far as there is room.
func (f *tunFlow) down() {
	defer f.done()
	b := make([]byte, headerSize+maxPayload)
	for {
		n, err := f.up.read(b[headerSize:])
		switch {
		case errors.Is(err, io.EOF):
			f.send(b[:headerSize], tcpACK|tcpFIN)
			return
		case err != nil:
			f.send(b[:headerSize], tcpACK|tcpRST)
			return
		}
		for sent := 0; sent < n; {
			part := f.wait(n - sent)
			if part == 0 {
				return
			}
			f.send(b[sent:headerSize+sent+part], tcpACK|tcpPSH) // the header overwrites bytes that were sent
			sent += part
		}
	}
}

// wait waits for room and returns how much of n fits, or 0 when the flow has ended.
func (f *tunFlow) wait(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.closed && int32(f.limit-f.next) <= 0 {
		f.room.Wait()
	}
	if f.closed {
		return 0
	}
	return min(n, int(f.limit-f.next))
}

// mayGo records how much room the application has.
func (f *tunFlow) mayGo(ack, window uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if limit := ack + window; int32(limit-f.limit) > 0 {
		f.limit = limit
		f.room.Signal()
	}
}

func (f *tunFlow) acknowledge() {
	f.mu.Lock()
	f.acked = f.expects
	f.mu.Unlock()
	f.send(make([]byte, headerSize), tcpACK)
}

// end ends the direction down, after the other direction has ended.
func (f *tunFlow) end() {
	f.mu.Lock()
	f.closed = true
	f.room.Broadcast()
	f.mu.Unlock()
	_ = unix.Shutdown(int(f.up), unix.SHUT_RDWR)
	f.done()
}

// done is called once for each direction, at its end.
func (f *tunFlow) done() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ways--; f.ways == 0 {
		f.up.close()
	}
}

// send writes a packet. b has the payload after room for the headers.
func (f *tunFlow) send(b []byte, flags byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(b, flags, tunWindow)
	f.next += uint32(len(b) - headerSize)
	if flags&tcpFIN != 0 {
		f.next++
	}
}

// put fills in the headers and writes the packet. The options of a SYN take the place of the payload.
func (f *tunFlow) put(b []byte, flags byte, window uint16) {
	size := len(b) - headerSize
	clear(b[:headerSize])
	vnet, ip, tcp := b[:vnetSize], b[vnetSize:vnetSize+ipSize], b[vnetSize+ipSize:]
	vnet[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(vnet[2:], ipSize+tcpSize)
	binary.NativeEndian.PutUint16(vnet[6:], ipSize)
	binary.NativeEndian.PutUint16(vnet[8:], 16)
	if size > tunMSS {
		vnet[1] = 1 // VIRTIO_NET_HDR_GSO_TCPV4
		binary.NativeEndian.PutUint16(vnet[4:], tunMSS)
	}

	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(b)-vnetSize))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // don't fragment
	src, dst := f.dst.Addr().As4(), f.app.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))

	binary.BigEndian.PutUint16(tcp, f.dst.Port())
	binary.BigEndian.PutUint16(tcp[2:], f.app.Port())
	binary.BigEndian.PutUint32(tcp[4:], f.next)
	binary.BigEndian.PutUint32(tcp[8:], f.acked)
	tcp[12], tcp[13] = tcpSize/4<<4, flags
	if flags&tcpSYN != 0 {
		tcp[12] = byte(tcpSize+size) / 4 << 4
	}
	binary.BigEndian.PutUint16(tcp[14:], window)
	// The sum of the pseudo-header; the kernel adds the rest.
	binary.BigEndian.PutUint16(tcp[16:], fold(sum(ip[12:])+unix.IPPROTO_TCP+uint32(len(tcp))))
	_, _ = unix.Write(f.fd, b)
}

// sum adds up 16-bit words, as an Internet checksum does (RFC 1071).
func sum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
