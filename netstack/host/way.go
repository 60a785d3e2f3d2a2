package host

import "net/netip"

// Connection is a TCP connection that is to be made, as the kernel looks its route up.
type Connection struct {
	Dst  netip.AddrPort
	Src  netip.Addr // that the socket is bound to; invalid: none, as with nearly every program
	Mark uint32     // of the socket; [Mark] for one of ours
}

// Way is where the kernel sends a connection.
type Way struct {
	Local  bool       // to this host itself
	Ours   bool       // into the device, by a route of ours: it is captured
	Link   string     // through this device
	Source netip.Addr // the address that a socket without one gets
}
