// Package link provides the TUN device and the gVisor link endpoint on it.
//
// # Theory of operation
//
// Each read on the device's descriptor returns one packet that the kernel has routed into the device. Each packet
// written to the descriptor arrives at the kernel as if a network card had received it.
//
//	application ── kernel TCP ── pin0 ──read()──▶ Endpoint ──▶ netstack
//	            ◀────────────────────◀─writev()── Endpoint ◀──
//
// With offloads (the default), the device is opened with IFF_VNET_HDR: every packet carries a virtio_net_hdr. It
// allows both sides to hand over up to 64 KiB of TCP payload as one packet, and to leave the checksum to whoever puts
// the bytes on a wire, which nobody does here. The MTU stays at 1500 all the same, so the device behaves like every
// other interface of the host: path MTU, hosts behind a gateway. See linux/Documentation/networking/tuntap.rst and
// include/uapi/linux/virtio_net.h.
//
// The reader reads in one go what the kernel sends in one burst. It passes on the last of each flow's ACKs in place
// of all of them, and consecutive data segments as one segment: see acks_linux.go and train_linux.go.
//
// Without offloads (Config.Offload is false, or the kernel refuses), the device is opened by github.com/songgao/water
// and driven by gVisor's fdbased endpoint at an MTU of 65520, which is the best a TUN can do without a header.
//
// The device lives as long as its descriptor. The kernel removes it, with its addresses and routes, when the process
// ends in any way.
//
// # Failures
//
//	no /dev/net/tun, no permission     Open fails, and says which
//	name taken by another device       Open fails (ErrNameTaken)
//	no IFF_VNET_HDR or TUNSETOFFLOAD   Open falls back to water; Link.Offload says so
//	device deleted under us            reading ends, Link.Failed yields the cause
//	a segment is damaged               dropped, if nobody has checked it before (a host behind this one sent it); TCP sends it again
//	the reader does not keep up        the kernel drops packets beyond QueueLen; TCP sends data again, but not resets
//	device down                        writes fail (EIO) and the packet is lost; reads go on
//
// The package knows gVisor's types but nothing of flows.
package link
