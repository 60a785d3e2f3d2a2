package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Roughness says how a path mistreats packets: the shares of them, from 0 to 1, independently for each packet.
type Roughness struct {
	Loss, Duplication, Reordering float64
	Seed                          uint64 // the same packets in the same order get the same treatment
}

// Rough is a path that loses, duplicates and reorders the packets a host forwards. The kernel of the test machine
// may have no netem, so the packets take a detour:
//
//	eth0 ─▶ rule "iif eth0" ─▶ rough0 ─▶ read, mistreat, write ─▶ rough0 ─▶ main table ─▶ eth1
//
// The other direction is the same. The host is a router with two links.
type Rough struct {
	file *os.File
	how  Roughness
	done sync.WaitGroup

	passed, mistreated atomic.Uint64
}

const (
	roughDevice = "rough0"
	roughTable  = 100
	// heldBack is how many packets overtake a reordered one, unless they take too long.
	heldBack = 3
	heldFor  = 5 * time.Millisecond
)

// Rough sets up a rough path. Call it once for a host, after its links were created.
func (h *Host) Rough(how Roughness) *Rough {
	h.net.helper()
	r := &Rough{how: how}
	h.check("make "+roughDevice, h.Do(func() error { return r.open() }))
	h.linkUp(roughDevice, nil)
	index := h.link(roughDevice).Attrs().Index
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if family == netlink.FAMILY_V6 {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		h.check("lead into "+roughDevice, h.nl.RouteAdd(&netlink.Route{Dst: all, LinkIndex: index, Table: roughTable}))
		for i := range h.links {
			rule := netlink.NewRule()
			rule.Family, rule.IifName, rule.Table, rule.Priority = family, fmt.Sprintf("eth%d", i), roughTable, 1000+i
			h.check("lead into "+roughDevice, h.nl.RuleAdd(rule))
		}
	}
	r.done.Go(r.carry)
	h.net.atClose(r.close)
	return r
}

func (r *Rough) open() error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	request, err := unix.NewIfreq(roughDevice)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	r.file = os.NewFile(uintptr(fd), tunDevice)
	return nil
}

func (r *Rough) close() error {
	err := r.file.Close()
	r.done.Wait()
	return err
}

// carry ends when the device is closed.
func (r *Rough) carry() {
	random := rand.New(rand.NewPCG(r.how.Seed, 0))
	var held []byte
	overtaken := 0
	release := func() {
		r.write(held)
		held, overtaken = nil, 0
		_ = r.file.SetReadDeadline(time.Time{})
	}
	b := make([]byte, 65536)
	for {
		n, err := r.file.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			release()
			continue
		case err != nil:
			return
		}
		packet := b[:n]
		lot := random.Float64()
		switch how := r.how; {
		case lot < how.Loss:
			r.mistreated.Add(1)
			continue
		case lot < how.Loss+how.Duplication:
			r.mistreated.Add(1)
			r.write(packet)
		case lot < how.Loss+how.Duplication+how.Reordering && held == nil:
			r.mistreated.Add(1)
			held = append([]byte(nil), packet...)
			_ = r.file.SetReadDeadline(time.Now().Add(heldFor))
			continue
		}
		r.write(packet)
		if held != nil {
			if overtaken++; overtaken == heldBack {
				release()
			}
		}
	}
}

// write returns a packet to the kernel. A packet that the kernel does not take is lost as well.
func (r *Rough) write(packet []byte) {
	r.passed.Add(1)
	_, _ = r.file.Write(packet)
}

// Counts returns how many packets were passed on, and how many were lost, duplicated or reordered.
func (r *Rough) Counts() (passed, mistreated uint64) { return r.passed.Load(), r.mistreated.Load() }
