package proxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const tcpListen = 10 // include/net/tcp_states.h

// Owner says which other process has the source port that the kernel would not
// give us, and by what socket: "nginx (pid 812), which listens on 0.0.0.0:63999".
// It is empty if there is none to be found: its socket is closed by now, or was
// closed without being over, or /proc is not ours to read. It reads all of
// /proc, so it is for messages only.
func (s Sockets) Owner(port uint16) string {
	var found []portSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found = append(found, socketsOf(family, port)...)
	}
	own := fmt.Sprint(os.Getpid())
	best := ""
	for _, s := range found {
		pid := processOf(s.inode)
		if pid == "" || pid == own {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		name := fmt.Sprintf("%s (pid %s), which %s", strings.TrimSpace(string(comm)), pid, s)
		if s.state == tcpListen {
			return name // it bars the port whatever the others do
		}
		best = name
	}
	return best
}

// portSocket is a TCP socket with a certain local port.
type portSocket struct {
	state         uint8
	local, remote netip.AddrPort
	inode         uint32
}

func (s portSocket) String() string {
	switch {
	case s.state == tcpListen:
		return "listens on " + s.local.String()
	case s.remote.Port() == 0:
		return "is bound to " + s.local.String()
	}
	return fmt.Sprintf("is connected from %s to %s", s.local, s.remote)
}

// socketsOf lists the sockets that have the local port; none if the kernel won't tell.
func socketsOf(family uint8, port uint16) []portSocket {
	unspecified := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		unspecified = netip.IPv6Unspecified()
	}
	dump := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	dump.AddRawData(diagRequest(netip.AddrPortFrom(unspecified, port), netip.AddrPortFrom(unspecified, 0), anyCookie))
	list, err := dump.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return nil
	}
	var found []portSocket
	for _, b := range list {
		if len(b) < msgLen || binary.BigEndian.Uint16(b[msgSockID:]) != port {
			continue
		}
		found = append(found, portSocket{
			state:  b[msgState],
			local:  diagAddr(family, b[msgSockID+4:], port),
			remote: diagAddr(family, b[msgSockID+20:], binary.BigEndian.Uint16(b[msgSockID+2:])),
			inode:  binary.NativeEndian.Uint32(b[msgInode:]),
		})
	}
	return found
}

func diagAddr(family uint8, b []byte, port uint16) netip.AddrPort {
	if family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), port)
}

// processOf finds a process that has the socket open. Sockets that are over
// (TIME_WAIT, orphans) have the inode 0 and nobody.
func processOf(inode uint32) (pid string) {
	if inode == 0 {
		return ""
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // gone, or not ours to read
		}
		for _, fd := range fds {
			if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && link == want {
				return p.Name()
			}
		}
	}
	return ""
}
