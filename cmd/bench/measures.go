package main

import "slices"

// measure is one thing to measure on each system.
type measure struct {
	key   string // in the file of samples
	group string // for --only
	short string // heading of a column in the table
	title string // in the page
	unit  string
	less  bool // whether less is better
}

// measures, in the order of the table.
var measures = []measure{
	{"up1", "throughput", "up 1", "up, 1 flow", "Gbit/s", false},
	{"down1", "throughput", "down 1", "down, 1 flow", "Gbit/s", false},
	{"up8", "throughput", "up 8", "up, 8 flows", "Gbit/s", false},
	{"down8", "throughput", "down 8", "down, 8 flows", "Gbit/s", false},
	{"cpuup", "throughput", "CPU up", "CPU up, 1 flow", "s/GB", true},
	{"cpudown", "throughput", "CPU dn", "CPU down, 1 flow", "s/GB", true},
	{"conn1", "connections", "conn 1", "connections, 1 worker", "1/s", false},
	{"conn16", "connections", "conn 16", "connections, 16 workers", "1/s", false},
	{"p50", "latency", "p50", "round trip of 64 bytes, p50", "µs", true},
	{"p99", "latency", "p99", "round trip of 64 bytes, p99", "µs", true},
	{"p50up8", "beside", "beside up", "round trip beside 8 uploads, p50", "µs", true},
	{"p50down8", "beside", "beside dn", "round trip beside 8 downloads, p50", "µs", true},
	{"pin", "pinned", "pin", "connections through one port", "1/s", false},
	{"pinplain", "pinned", "pin -ts", "the same without timestamps", "1/s", false},
	{"memory", "memory", "B/flow", "memory of an idle flow", "bytes", true},
	{"gwup1", "gateway", "gw up 1", "behind a gateway: up, 1 flow", "Gbit/s", false},
	{"gwdown1", "gateway", "gw dn 1", "behind a gateway: down, 1 flow", "Gbit/s", false},
	{"gwup8", "gateway", "gw up 8", "behind a gateway: up, 8 flows", "Gbit/s", false},
	{"gwdown8", "gateway", "gw dn 8", "behind a gateway: down, 8 flows", "Gbit/s", false},
	{"busyup1", "flows", "up one", "up, 1 busy flow", "Gbit/s", false},
	{"busyup10", "flows", "up 10", "up, 10 busy flows", "Gbit/s", false},
	{"busyup100", "flows", "up 100", "up, 100 busy flows", "Gbit/s", false},
	{"busyup1000", "flows", "up 1000", "up, 1,000 busy flows", "Gbit/s", false},
	{"busydown1", "flows", "dn one", "down, 1 busy flow", "Gbit/s", false},
	{"busydown10", "flows", "dn 10", "down, 10 busy flows", "Gbit/s", false},
	{"busydown100", "flows", "dn 100", "down, 100 busy flows", "Gbit/s", false},
	{"busydown1000", "flows", "dn 1000", "down, 1,000 busy flows", "Gbit/s", false},
}

func measureOf(key string) measure {
	return measures[slices.IndexFunc(measures, func(m measure) bool { return m.key == key })]
}

// hostOnly are groups in which pinproxy is measured only when it serves a host, not a command.
var hostOnly = []string{"gateway", "flows"}

// groups returns the values that --only accepts.
func groups() []string {
	var list []string
	for _, m := range measures {
		if !slices.Contains(list, m.group) {
			list = append(list, m.group)
		}
	}
	return list
}

// kind is a system that can be measured.
type kind struct {
	key     string // for --systems, and in the file of samples
	program string // looked for on the PATH; empty for what comes with pinproxy
	title   string
	how     string // how it is set up, for the page
}

// Keys of the systems used in ratios.
const (
	keyDirect   = "direct"
	keyPinproxy = "pinproxy"
	keyCommand  = "pinproxy-command"
	keyMany     = "pinproxy-many"
	keyTUN      = "tun"
)

// kinds, in the order of the table.
var kinds = []kind{
	{keyDirect, "", "direct", "no proxy; where a port is pinned, the program binds it with `SO_REUSEADDR`"},
	{keyPinproxy, "", "pinproxy", "for the whole host, with the destination's prefix pinned to 10,000 source ports and one service to a single port"},
	{keyCommand, "", "pinproxy -- CMD", "the same rules for one command"},
	{keyMany, "", "pinproxy, many", "for the whole host with 10,000 rules and 100,000 addresses learned from DNS, including the server's"},
	{keyTUN, "", "TUN alone", "a TUN device and a socket with just enough TCP between them to keep the kernel sending, for one flow: a mark for proxies with a TUN, not a bound"},
	{"sing-box-gvisor", "sing-box", "sing-box gvisor", "TUN inbound, stack gvisor, its default MTU; direct outbound"},
	{"sing-box-system", "sing-box", "sing-box system", "the same with stack system"},
	{"tun2socks", "tun2socks", "tun2socks", "proxy direct, MTU 65520"},
	{"pasta", "pasta", "pasta", "its default MTU of 65520"},
	{"slirp4netns", "slirp4netns", "slirp4netns", "MTU 65520"},
	{"socat", "socat", "socat", "no TUN: a listener on loopback for each service, `fork`; `sourceport` and `reuseaddr` where a port is pinned"},
	{"haproxy", "haproxy", "haproxy", "no TUN: a listener on loopback for each service, 2 threads, splice; `source ADDRESS:PORT` where a port is pinned"},
	{"nft", "nft", "nft SNAT", "no proxy: the kernel's NAT, `snat to` 10,000 source ports, or to the one port"},
}

// systemKeys returns the values that --systems accepts.
func systemKeys() []string {
	var list []string
	for _, k := range kinds {
		list = append(list, k.key)
	}
	return list
}
