package lab

import "strings"

// Addresses of [Net.Topology]. Those beginning with Near are the router's on the client's side.
const (
	Client4 = "198.51.100.2"
	Client6 = "2001:db8:1::2"
	Near4   = "198.51.100.1"
	Near6   = "2001:db8:1::1"
	Far4    = "203.0.113.1"
	Far6    = "2001:db8:2::1"
	Server4 = "203.0.113.2"
	Server6 = "2001:db8:2::2"
)

// Topology is the usual network; the package comment has a drawing. The router's eth0 is towards the client, its
// eth1 towards the server. Client and server have one eth0 each.
type Topology struct {
	Client, Router, Server *Host
}

// Topology builds the usual network, with default routes and a router that passes everything.
func (n *Net) Topology() *Topology {
	n.helper()
	t := &Topology{Client: n.Host("client"), Router: n.Host("router"), Server: n.Host("server")}
	t.Router.Forward()
	n.Link(t.Router, []string{Near4 + "/24", Near6 + "/64"}, t.Client, []string{Client4 + "/24", Client6 + "/64"})
	n.Link(t.Router, []string{Far4 + "/24", Far6 + "/64"}, t.Server, []string{Server4 + "/24", Server6 + "/64"})
	t.Client.Route("default", Near4)
	t.Client.Route("default", Near6)
	t.Server.Route("default", Far4)
	t.Server.Route("default", Far6)
	return t
}

// ServerOwns gives the server all addresses of the prefixes ("192.0.2.0/24", "2001:db8:cafe::/48", single addresses
// as /32 and /128), and adds routes to them on the router.
func (t *Topology) ServerOwns(prefixes ...string) {
	t.Server.net.helper()
	t.Server.Own(prefixes...)
	for _, p := range prefixes {
		via := Server4
		if strings.Contains(p, ":") {
			via = Server6
		}
		t.Router.Route(p, via)
	}
}
