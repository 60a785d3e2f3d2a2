package main

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// answers tells the log of servers whose clients can't connect because of us. The kernel's policy rules see addresses
// and ports, not which end began a connection. So what a server answers is captured if its client is what a rule means:
// from behind a gateway, or with --strict from this host.
type answers struct {
	log  *slog.Logger
	told map[netip.AddrPort]struct{}
}

// mostTold is how many servers are told of. Anybody behind a gateway can make more up.
const mostTold = 16

// captured is told of each answer, by one goroutine, which it does not hold up.
func (a *answers) captured(server, client netip.AddrPort) {
	if _, told := a.told[server]; told || len(a.told) >= mostTold {
		return
	}
	if a.told == nil {
		a.told = make(map[netip.AddrPort]struct{})
	}
	a.told[server] = struct{}{}
	ip := "ip"
	if server.Addr().Is6() {
		ip = "ip -6"
	}
	go a.log.Warn("a server's answers are captured, so its clients cannot connect", "src", server, "dst", client, "hint",
		fmt.Sprintf("name the partner's ports in the rule, or let these answers pass: %s rule add pref 3900 ipproto tcp sport %d lookup main", ip, server.Port()))
}
