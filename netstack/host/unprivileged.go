package host

import (
	"fmt"
	"os"
)

// LowestUnprivileged returns the lowest port that anybody may bind (net.ipv4.ip_unprivileged_port_start).
func LowestUnprivileged() uint16 {
	first := uint16(1024)
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		_, _ = fmt.Sscan(string(b), &first)
	}
	return first
}
