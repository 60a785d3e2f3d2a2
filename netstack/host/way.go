package host

import "net/netip"

// Connection is a TCP connection to be made, as the kernel sees it when it looks up the route.
type Connection struct {
	Dst  netip.AddrPort
	Src  netip.Addr // the socket's bound address; invalid: none, as with nearly every program
	Port uint16     // and its bound port; 0: none
	Mark uint32     // of the socket; [Mark] for one of ours
}

// Way is where the kernel sends a connection.
type Way struct {
	Local  bool       // to this host itself
	Ours   bool       // into the device, by a route of ours: it is captured
	Link   string     // through this device
	Source netip.Addr // the source address of a socket without one
}
