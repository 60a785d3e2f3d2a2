package link

import (
	"errors"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Default is the device's name when none is given.
const Default = "pin0"

// MTUs of the device, in bytes. With offloads, packets may be far larger than the MTU; without them, a large MTU is
// the only way to move more than 1460 bytes at a time. 65520 is the largest that keeps a packet and its rounding
// within 64 KiB.
const (
	offloadMTU = 1500
	plainMTU   = 65520
)

// QueueLen is the length, in packets, to set the device's queue to. While the queue is full, the kernel drops what
// arrives (tun_net_xmit) without telling the sender, and nobody sends a dropped reset again. So the queue is long
// enough for the bursts of thousands of connections while the reader waits for its turn. It costs 8 bytes a packet;
// the packets themselves take memory only as they come.
const QueueLen = 10000

// ErrNoTUN means that the system has no TUN device to open.
var ErrNoTUN = errors.New("no TUN device")

// ErrNameTaken means that another device has the name.
var ErrNameTaken = errors.New("the name is in use")

// Config says which device to open.
type Config struct {
	Name    string // device name; empty: Default
	Offload bool   // try segmentation and checksum offload
	Index   int    // OpenFD: the index that the device gets, with offloads; 0: one that is free
}

// Link is an open TUN device.
//
// It is owned by whoever opened it. Close removes the device with its addresses and routes. All methods may be called
// from any goroutine.
type Link struct {
	name     string
	mtu      int
	offload  bool
	endpoint stack.LinkEndpoint
	failed   chan error // buffered, one value at most
	close    func() error
}

// New makes a Link from any gVisor endpoint, for links that are not TUN devices. Close calls closeFunc, which may be
// nil.
func New(name string, ep stack.LinkEndpoint, closeFunc func() error) *Link {
	return &Link{name: name, mtu: int(ep.MTU()), endpoint: ep, failed: make(chan error, 1), close: closeFunc}
}

// Name is the device's name, as `ip link` shows it.
func (l *Link) Name() string { return l.name }

// MTU is the device's MTU in bytes, to be set on the kernel's side as well.
func (l *Link) MTU() int { return l.mtu }

// Offload reports whether segmentation and checksum offload are in use.
func (l *Link) Offload() bool { return l.offload }

// Endpoint is the device as netstack sees it.
func (l *Link) Endpoint() stack.LinkEndpoint { return l.endpoint }

// Failed yields one error when the device can no longer be read, for example
// because somebody deleted it. It yields nothing on Close.
func (l *Link) Failed() <-chan error { return l.failed }

// Close ends reading and gives the device back to the kernel. Call it after the endpoint has been detached from its
// stack.
func (l *Link) Close() error {
	if l.close == nil {
		return nil
	}
	return l.close()
}

// fail reports the end of reading, once.
func (l *Link) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}
