package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"pinproxy/netstack/lab"
)

// The server's addresses, on a device of its own.
const (
	serverPrefix = "203.0.113.0/24"
	nameServer   = "203.0.113.1:53"
	serverFirst  = 2 // services are at 203.0.113.2 to .9
	serverLast   = 9
)

// serverAddrs returns the service at port on all the server's addresses.
func serverAddrs(port uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for i := byte(serverFirst); i <= serverLast; i++ {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, i}), port))
	}
	return list
}

// tcpSysctls are set on every host. They make room for many short connections from one address, and choose the
// congestion control that every namespace may choose. The machine's own choice may pace, or see congestion between
// two ends of a virtual wire. That would then be what the bench measures.
var tcpSysctls = [][2]string{
	{"net.ipv4.tcp_congestion_control", "reno"},
	{"net.ipv4.ip_local_port_range", "1024 65535"},
	{"net.ipv4.tcp_tw_reuse", "1"},
	{"net.ipv4.tcp_max_syn_backlog", "8192"},
	{"net.core.somaxconn", "8192"},
}

// network is the network drawn in main.go.
type network struct {
	*lab.Net
	host       *lab.Host // the server's
	server     *agent
	clients    int
	timestamps bool
}

func newNetwork(n *lab.Net) (*network, error) {
	w := &network{Net: n, host: n.Host("server"), timestamps: true}
	for _, s := range tcpSysctls {
		w.host.Sysctl(s[0], s[1])
	}
	w.host.Own(serverPrefix)
	w.host.DNS(manyAnswer, nameServer)
	argv, err := agentCommand()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	w.server, err = startAgent(w.host, cmd)
	return w, err
}

// client adds a client host, linked to the server, and returns it with its address.
func (w *network) client(name string) (*lab.Host, string) {
	h := w.Net.Host(name)
	for _, s := range tcpSysctls {
		h.Sysctl(s[0], s[1])
	}
	at := 4 * w.clients
	w.clients++
	near, far := fmt.Sprintf("198.51.100.%d", at+1), fmt.Sprintf("198.51.100.%d", at+2)
	w.Link(w.host, []string{near + "/30"}, h, []string{far + "/30"})
	h.Route("default", near)
	return h, far
}

// behind adds a host behind a client of that address, which forwards for it. Its link is an ordinary one, with an
// MTU of 1500 and the offloads of virtual Ethernet.
func (w *network) behind(client *lab.Host, addr string) *lab.Host {
	h := w.Net.Host("behind " + client.Name())
	for _, s := range tcpSysctls {
		h.Sysctl(s[0], s[1])
	}
	client.Forward()
	near, far := fmt.Sprintf("100.64.%d.1", w.clients), fmt.Sprintf("100.64.%d.2", w.clients)
	w.Link(client, []string{near + "/24"}, h, []string{far + "/24"})
	h.Route("default", near)
	w.host.Route(fmt.Sprintf("100.64.%d.0/24", w.clients), addr)
	return h
}

// setTimestamps sets whether the server uses TCP timestamps in connections to come.
func (w *network) setTimestamps(on bool) {
	if w.timestamps == on {
		return
	}
	value := "0"
	if on {
		value = "1"
	}
	w.host.Sysctl("net.ipv4.tcp_timestamps", value)
	w.timestamps = on
}

// waitFor calls f until it returns nil, for at most patience. It returns f's last error.
func waitFor(patience time.Duration, f func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
	}
}
