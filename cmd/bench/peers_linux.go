package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// How the peers are started.

// Devices of a client host.
const (
	uplink    = "eth0"
	innerLink = "eth1" // to the host behind it
)

func (s *system) peer(ctx context.Context) error {
	switch s.program {
	case "":
		return s.tun(ctx)
	case "sing-box":
		return s.singBox(ctx)
	case "tun2socks":
		return s.tun2socks(ctx)
	case "pasta", "slirp4netns":
		return s.attached()
	case "socat":
		return s.socat()
	case "haproxy":
		return s.haproxy()
	case "nft":
		return s.snat()
	}
	return errors.New("nobody knows how to start it")
}

// tun starts the TUN device without a TCP stack.
func (s *system) tun(ctx context.Context) error {
	argv, err := agentCommand()
	if err != nil {
		return err
	}
	if _, err := s.run(argv[0], "tun"); err != nil {
		return err
	}
	return s.throughTUN(ctx, true)
}

func (s *system) singBox(ctx context.Context) error {
	_, stack, _ := strings.Cut(s.key, "sing-box-")
	config, err := json.Marshal(map[string]any{
		"log": map[string]any{"level": "error"},
		"inbounds": []any{map[string]any{
			"type": "tun", "interface_name": tunName, "address": []string{tunAddr + "/30"}, "auto_route": false, "stack": stack,
		}},
		"outbounds": []any{map[string]any{"type": "direct", "bind_interface": uplink}},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, "sing-box.json")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return err
	}
	if _, err := s.run(s.binary, "run", "-c", file); err != nil {
		return err
	}
	return s.throughTUN(ctx, false)
}

func (s *system) tun2socks(ctx context.Context) error {
	_, err := s.run(s.binary, "-device", "tun://"+tunName, "-mtu", "65520", "-proxy", "direct://", "-interface", uplink, "-loglevel", "silent")
	if err != nil {
		return err
	}
	return s.throughTUN(ctx, true)
}

// throughTUN routes what goes to the server into the device of the system, after setting the device up if the system
// does not do so itself. The system's own sockets are bound to the uplink.
func (s *system) throughTUN(ctx context.Context, setUp bool) error {
	nl := s.host.Netlink()
	err := waitFor(startPatience, func() error {
		if errors.Join(ctx.Err(), ended(s.processes[0])) != nil {
			return nil
		}
		l, err := nl.LinkByName(tunName)
		if err == nil && !setUp && l.Attrs().RawFlags&1 == 0 {
			err = fmt.Errorf("%s is not up", tunName)
		}
		return err
	})
	if err = errors.Join(err, ctx.Err(), ended(s.processes[0])); err != nil {
		return err
	}
	if setUp {
		l, err := nl.LinkByName(tunName)
		if err == nil {
			err = nl.LinkSetUp(l)
		}
		if err != nil {
			return err
		}
		s.host.Addr(tunName, tunAddr+"/30")
	}
	s.host.Route(serverPrefix, tunName)
	return s.load(s.host)
}

// attached starts a program that gives a namespace a network, with the load in such a namespace.
func (s *system) attached() error {
	app := s.net.Host(s.key + " application")
	for _, set := range tcpSysctls {
		app.Sysctl(set[0], set[1])
	}
	if err := s.load(app); err != nil {
		return err
	}
	// This is a file because pasta gives up the right to look at other processes' namespaces before it opens this.
	file := filepath.Join(s.dir, "netns")
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", app.Namespace()), file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("give the namespace a name: %w", err)
	}
	s.mounted = file
	args := []string{"--netns-type=path", "--configure", "--mtu=65520", "--cidr=192.0.2.0/24", "--disable-dns", file, "tap0"}
	if s.program == "pasta" {
		args = []string{
			"--foreground", "--quiet", "--runas", "0", "--netns-only", "--config-net", "-i", uplink, "-I", "tap0",
			"-t", "none", "-u", "none", "-T", "none", "-U", "none", "--netns", file,
		}
	}
	_, err := s.run(s.binary, args...)
	return err
}

func (s *system) socat() error {
	s.local, s.descendants = true, true
	for _, port := range servicePorts {
		to := fmt.Sprintf("TCP:%s", serverAddrs(port)[0])
		if from, ok := pinnedTo[port]; ok {
			to += fmt.Sprintf(",sourceport=%d,reuseaddr", from)
		}
		_, err := s.run(s.binary, fmt.Sprintf("TCP-LISTEN:%d,bind=127.0.0.1,fork,reuseaddr,backlog=1024", port), to)
		if err != nil {
			return err
		}
	}
	return s.load(s.host)
}

func (s *system) haproxy() error {
	s.local = true
	var b strings.Builder
	fmt.Fprintf(&b, "global\n nbthread 2\n maxconn %d\n", descriptors()*3/8) // two descriptors each, plus pipes
	fmt.Fprint(&b, "defaults\n mode tcp\n option splice-auto\n retries 0\n timeout connect 3s\n timeout client 1m\n timeout server 1m\n timeout client-fin 1m\n timeout tunnel 1m\n")
	for _, port := range servicePorts {
		fmt.Fprintf(&b, "listen p%d\n bind 127.0.0.1:%d\n server s %s", port, port, serverAddrs(port)[0])
		if from, ok := pinnedTo[port]; ok {
			fmt.Fprintf(&b, " source %s:%d-%d", s.addr, from, from)
		}
		fmt.Fprintln(&b)
	}
	file := filepath.Join(s.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	if _, err := s.run(s.binary, "-db", "-f", file); err != nil {
		return err
	}
	return s.load(s.host)
}

// snat has the kernel's NAT choose the ports, as rules of pinproxy would.
func (s *system) snat() error {
	var b strings.Builder
	fmt.Fprint(&b, "table ip bench {\n chain postrouting {\n  type nat hook postrouting priority srcnat;\n")
	for _, port := range []uint16{portPinned, portPlain} {
		fmt.Fprintf(&b, "  ip daddr %s tcp dport %d snat to %s:%d\n", serverPrefix, port, s.addr, pinnedTo[port])
	}
	fmt.Fprintf(&b, "  ip daddr %s ip protocol tcp snat to %s:%s\n }\n}\n", serverPrefix, s.addr, pinRange)
	file := filepath.Join(s.dir, "nft")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	if _, _, err := s.host.Run(exec.Command(s.binary, "-f", file)); err != nil {
		return err
	}
	return s.load(s.host)
}

// find looks for the programs of the kinds on the PATH. It leaves out those that are not there.
func find(kinds []kind, pinproxy string) (found map[string]string) {
	found = make(map[string]string)
	for _, k := range kinds {
		if k.program == "" {
			found[k.key] = pinproxy
		} else if path, err := exec.LookPath(k.program); err == nil {
			found[k.key] = path
		}
	}
	return found
}
