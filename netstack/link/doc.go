// Package link is the TUN device and the gVisor link endpoint on it.
//
// # Theory of operation
//
// Whatever the kernel routes into the device comes out of a read on its
// descriptor, one packet a read; whatever is written to it arrives at the
// kernel as if a network card had received it.
//
//	application ── kernel TCP ── pin0 ──read()──▶ Endpoint ──▶ netstack
//	            ◀────────────────────◀─writev()── Endpoint ◀──
//
// With offloads (the default) the device is opened with IFF_VNET_HDR: every
// packet carries a virtio_net_hdr, by which both sides hand over up to 64 KiB
// of TCP payload as one packet and leave the checksum to whoever puts the
// bytes on a wire, which nobody does here. The MTU stays at 1500 all the same,
// so the device behaves as every other interface of the host: path MTU,
// hosts behind a gateway. See linux/Documentation/networking/tuntap.rst and
// include/uapi/linux/virtio_net.h.
//
// What the kernel sends in one burst, the reader reads in one go, and passes the last
// of each flow's ACKs on for all of them, and data that follows each other as one segment: see
// acks_linux.go and train_linux.go.
//
// Without (Config.Offload false, or a kernel that refuses) the device is opened
// by github.com/songgao/water and driven by gVisor's fdbased endpoint at an
// MTU of 65520, which is what a TUN can do at its best without a header.
//
// The device lives as long as its descriptor: the kernel takes it away, with
// addresses and routes, when the process ends in any way.
//
// # Failures
//
//	no /dev/net/tun, no permission     Open fails, and says which
//	name taken by another device       Open fails (ErrNameTaken)
//	no IFF_VNET_HDR or TUNSETOFFLOAD   Open falls back to water; Link.Offload says so
//	device deleted under us            reading ends, Link.Failed yields the cause
//	a segment is damaged               dropped, where nobody has looked before (a host behind this one sent it); TCP sends it again
//	the reader does not keep up        the kernel drops what is beyond QueueLen packets; TCP sends data again, resets not
//	device down                        writes fail (EIO) and the packet is lost; reads go on
//
// The package knows gVisor's types and nothing of flows.
package link
