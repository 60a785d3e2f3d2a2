package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/rawfile"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// struct virtio_net_hdr (include/uapi/linux/virtio_net.h), in the byte order of the host, which a TUN uses unless
// told otherwise (TUNSETVNETLE).
const (
	vnetHeaderSize = 10

	vnetFlags      = 0 // u8
	vnetGSOType    = 1 // u8
	vnetHdrLen     = 2 // u16: bytes of headers, a hint
	vnetGSOSize    = 4 // u16: payload bytes of each segment
	vnetCsumStart  = 6 // u16: where the checksummed part begins
	vnetCsumOffset = 8 // u16: where in that part the checksum is

	vnetNeedsCsum = 1 // flags: the checksum field holds only the pseudo-header's sum
	vnetDataValid = 2 // flags: the checksum has been verified
	vnetGSONone   = 0
	vnetGSOTCPv4  = 1
	vnetGSOTCPv6  = 4
)

const (
	// maxPacket is the most that the kernel hands over: a 64 KiB IP packet. IPv6 BIG TCP needs a larger gso_max_size,
	// which a TUN does not have.
	maxPacket = 65536
	// copyBelow is the size, in bytes, up to which packets are copied into a buffer of their own size, so that an ACK
	// does not pin the 64 KiB it was read into.
	copyBelow = 16384
)

var errDeleted = errors.New("the tun device was deleted")

// vnetEndpoint is a TUN device with segmentation and checksum offload in both
// directions.
//
// One goroutine reads; WritePackets may be called by any number of goroutines.
type vnetEndpoint struct {
	fd     int      // for writing, while not closed
	file   *os.File // owns fd, which Go's poller watches
	raw    syscall.RawConn
	fail   func(error)
	stop   atomic.Bool
	reader sync.WaitGroup

	mu         sync.RWMutex // held for reading while fd is written to
	closed     bool
	dispatcher stack.NetworkDispatcher
	mtu        uint32
	onClose    func()
}

var (
	_ stack.LinkEndpoint = (*vnetEndpoint)(nil)
	_ stack.GSOEndpoint  = (*vnetEndpoint)(nil)
)

// newVnetEndpoint takes over fd, which must not block, if it succeeds. It calls fail when reading ends by itself.
func newVnetEndpoint(fd int, mtu uint32, fail func(error)) (*vnetEndpoint, error) {
	file := os.NewFile(uintptr(fd), tunDevice)
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &vnetEndpoint{fd: fd, file: file, raw: raw, mtu: mtu, fail: fail}, nil
}

// Attach starts reading, or ends it when d is nil. It may be ended only once.
func (e *vnetEndpoint) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	old := e.dispatcher
	e.dispatcher = d
	e.mu.Unlock()
	switch {
	case old == nil && d != nil:
		e.reader.Go(func() { e.read(d) })
	case old != nil && d == nil:
		e.stop.Store(true)
		_ = e.file.SetReadDeadline(time.Unix(1, 0)) // wakes a reader that waits
		e.reader.Wait()
	}
}

// closeDevice closes the descriptor, which removes the device.
func (e *vnetEndpoint) closeDevice() error {
	e.Attach(nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	return e.file.Close()
}

// read hands every packet of the device to d. It runs until Attach(nil) and waits in Go's poller: a thread of its own
// in poll(2) would cost two hand-overs between threads per packet.
func (e *vnetEndpoint) read(d stack.NetworkDispatcher) {
	big := buffer.NewViewSize(maxPacket)
	defer func() { big.Release() }()
	var hdr [vnetHeaderSize]byte
	iov := []unix.Iovec{{Base: &hdr[0]}, {Base: big.BasePtr()}}
	iov[0].SetLen(len(hdr))
	iov[1].SetLen(maxPacket)
	var failed error
	var acks acks
	var train train
	one := func(v *buffer.View) { deliver(d, buffer.MakeWithView(v)) }
	whole := func(b buffer.Buffer) { deliver(d, b) }
	handOver := func() {
		train.take(whole) // it came first
		acks.take(one)
	}
	defer func() { // release what is left at the end
		train.take(func(b buffer.Buffer) { b.Release() })
		acks.take((*buffer.View).Release)
	}()
	err := e.raw.Read(func(fd uintptr) bool {
		for !e.stop.Load() {
			n, errno := readv(fd, iov)
			switch errno {
			case 0:
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				handOver()
				return false
			case unix.EBADFD: // tun_chr_read_iter
				failed = errDeleted
				return true
			default:
				failed = fmt.Errorf("read the tun device: %w", errno)
				return true
			}
			n -= vnetHeaderSize
			if n <= 0 {
				continue
			}
			packet := big.AsSlice()[:n]
			if hdr[vnetFlags]&(vnetNeedsCsum|vnetDataValid) == 0 && !intact(packet) || acks.hold(packet) {
				continue
			}
			view := big
			if n <= copyBelow {
				view = buffer.NewView(n)
				_, _ = view.Write(packet)
			} else {
				view.CapLength(n)
				big = buffer.NewViewSize(maxPacket)
				iov[1].Base = big.BasePtr()
			}
			if len(acks.held) == 0 && train.join(view) {
				continue
			}
			handOver()
			if !train.begin(view) {
				whole(split(view))
			}
		}
		return true
	})
	switch {
	case e.stop.Load():
	case failed != nil:
		e.fail(failed)
	case err != nil: // the poller saw POLLERR: the device has gone
		e.fail(fmt.Errorf("%w: %w", errDeleted, err))
	}
}

// readv does not tell the scheduler of the system call: the descriptor does not block, and if the process was idle,
// telling it would wake another thread (entersyscallWakeSysmon).
func readv(fd uintptr, iov []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return int(n), errno
}

// deliver hands one IP packet to netstack and gives it up. It drops what is neither IPv4 nor IPv6.
func deliver(d stack.NetworkDispatcher, packet buffer.Buffer) {
	pieces := packet.AsViewList()
	var proto tcpip.NetworkProtocolNumber
	switch header.IPVersion(pieces.Front().AsSlice()) {
	case header.IPv4Version:
		proto = header.IPv4ProtocolNumber
	case header.IPv6Version:
		proto = header.IPv6ProtocolNumber
	default:
		packet.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: packet})
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// splitAbove is the size, in bytes, up to which a packet stays in one piece.
const splitAbove = 1024

// split puts the headers of a TCP segment into a piece of their own. gVisor keeps a reference to the IP header while
// it looks for the other headers (ipv4.endpoint.HandlePacket), and before it returns a header from a piece that is
// referenced elsewhere, it copies the piece (Buffer.PullUp). Without split, it would copy each packet with all of its
// data.
func split(view *buffer.View) buffer.Buffer {
	packet := view.AsSlice()
	segment, ok := segmentOf(packet)
	if len(packet) <= splitAbove || !ok {
		return buffer.MakeWithView(view)
	}
	offset := int(header.TCP(segment).DataOffset())
	if offset < header.TCPMinimumSize || offset >= len(segment) { // netstack will see that it is invalid
		return buffer.MakeWithView(view)
	}
	n := len(packet) - len(segment) + offset
	b := buffer.MakeWithView(buffer.NewViewWithData(packet[:n]))
	view.TrimFront(n)
	_ = b.Append(view) // fails only for a piece that can't be written to
	return b
}

// WritePackets writes each packet with one gathering system call, whatever the number of its pieces, up to 64 KiB. A
// packet that the device does not take is lost, as on any link; netstack sends it again.
func (e *vnetEndpoint) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for i, pkt := range pkts.AsSlice() {
		if err := e.write(pkt); err != nil {
			return i, err
		}
	}
	return pkts.Len(), nil
}

func (e *vnetEndpoint) write(pkt *stack.PacketBuffer) tcpip.Error {
	var hdr [vnetHeaderSize]byte
	putHeader(&hdr, pkt)
	slices := pkt.AsSlices()
	var few [16]unix.Iovec
	iov := few[:0]
	if len(slices)+1 > len(few) {
		iov = make([]unix.Iovec, 0, len(slices)+1)
	}
	max := len(slices) + 1
	iov = rawfile.AppendIovecFromBytes(iov, hdr[:], max)
	for _, s := range slices {
		iov = rawfile.AppendIovecFromBytes(iov, s, max)
	}
	if errno := rawfile.NonBlockingWriteIovec(e.fd, iov); errno != 0 {
		return tcpip.TranslateErrno(errno)
	}
	return nil
}

// putHeader fills in what is left for the kernel to do. Packets without a GSO request (SYN, ACK, FIN) already carry
// their full checksum.
func putHeader(hdr *[vnetHeaderSize]byte, pkt *stack.PacketBuffer) {
	gso := &pkt.GSOOptions
	if gso.Type == stack.GSONone {
		return
	}
	binary.NativeEndian.PutUint16(hdr[vnetHdrLen:], uint16(pkt.HeaderSize()))
	if gso.NeedsCsum {
		hdr[vnetFlags] = vnetNeedsCsum
		binary.NativeEndian.PutUint16(hdr[vnetCsumStart:], gso.L3HdrLen)
		binary.NativeEndian.PutUint16(hdr[vnetCsumOffset:], gso.CsumOffset)
	}
	if pkt.Data().Size() <= int(gso.MSS) {
		return // one segment: virtio_net_hdr_to_skb would refuse a GSO type
	}
	switch gso.Type {
	case stack.GSOTCPv4:
		hdr[vnetGSOType] = vnetGSOTCPv4
	case stack.GSOTCPv6:
		hdr[vnetGSOType] = vnetGSOTCPv6
	}
	binary.NativeEndian.PutUint16(hdr[vnetGSOSize:], gso.MSS)
}

// Capabilities says that received checksums need no check: what we pass on was checked by the kernel or by us, or
// never left this machine. CapabilityTXChecksumOffload is not set, because it would leave the checksum of packets
// without a GSO request to a device that is never told.
func (e *vnetEndpoint) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// GSOMaxSize is the size of the largest IP packet, headers included.
func (e *vnetEndpoint) GSOMaxSize() uint32 { return maxPacket - 1 }

// SupportedGSO says that the other side of the device segments.
func (e *vnetEndpoint) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// MTU of the device, in bytes.
func (e *vnetEndpoint) MTU() uint32 {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.mtu
}

// SetMTU changes the MTU that netstack assumes.
func (e *vnetEndpoint) SetMTU(mtu uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mtu = mtu
}

// IsAttached reports whether packets are being read.
func (e *vnetEndpoint) IsAttached() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher != nil
}

// Wait returns when reading has ended.
func (e *vnetEndpoint) Wait() { e.reader.Wait() }

// SetOnCloseAction makes Close call action.
func (e *vnetEndpoint) SetOnCloseAction(action func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.onClose = action
}

// Close is called by netstack when the NIC is gone. The descriptor stays with the Link, which closes it.
func (e *vnetEndpoint) Close() {
	e.mu.RLock()
	action := e.onClose
	e.mu.RUnlock()
	if action != nil {
		action()
	}
}

// A TUN has no link layer.
func (*vnetEndpoint) MaxHeaderLength() uint16                 { return 0 }
func (*vnetEndpoint) LinkAddress() tcpip.LinkAddress          { return "" }
func (*vnetEndpoint) SetLinkAddress(tcpip.LinkAddress)        {}
func (*vnetEndpoint) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*vnetEndpoint) AddHeader(*stack.PacketBuffer)           {}
func (*vnetEndpoint) ParseHeader(*stack.PacketBuffer) bool    { return true }
