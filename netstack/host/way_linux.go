package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// FindWay asks the kernel where it would send a connection from the network namespace of the calling thread,
// with the current policy rules and routes. Nothing is sent, and no privilege is needed. The error is the errno
// that connect would fail with.
func FindWay(c Connection) (Way, error) {
	r, err := openRTNL()
	if err != nil {
		return Way{}, err
	}
	defer r.close()
	way, err := r.findWay(c)
	if err != nil {
		return Way{}, fmt.Errorf("find the way to %s: %w", c.Dst, err)
	}
	return way, nil
}

func (r *rtnl) findWay(c Connection) (Way, error) {
	// The first answer gives the address and the device, the second the route.
	sent, err := r.lookup(c, 0)
	if err != nil {
		return Way{}, err
	}
	route, err := r.lookup(c, unix.RTM_F_FIB_MATCH)
	if err != nil {
		return Way{}, err
	}
	way := Way{Local: sent.typ == unix.RTN_LOCAL, Ours: route.protocol == Protocol, Source: sent.src}
	if link, err := net.InterfaceByIndex(sent.link); err == nil { // otherwise it is already gone
		way.Link = link.Name
	}
	return way, nil
}

// lookup has the kernel look up a connection's route, like `ip route get ADDR ipproto tcp dport PORT`.
func (r *rtnl) lookup(c Connection, flags uint32) (info routeInfo, err error) {
	dst := c.Dst.Addr().Unmap()
	af, bits := familyOf(dst).af(), uint8(dst.BitLen())
	src := uint8(0)
	if c.Src.IsValid() {
		src = bits
	}
	r.buf = r.buf[:0]
	end := r.begin(unix.RTM_GETROUTE, 0)
	r.buf = append(r.buf, af, bits, src, 0, 0, 0, 0, 0)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, flags)
	r.attr(unix.RTA_DST, dst.AsSlice())
	if c.Src.IsValid() {
		r.attr(unix.RTA_SRC, c.Src.Unmap().AsSlice())
	}
	if c.Mark != 0 {
		r.attr32(unix.RTA_MARK, c.Mark)
	}
	r.shortAttr(unix.RTA_IP_PROTO, protoTCP)
	if c.Port != 0 {
		r.shortAttr(unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, c.Port)...)
	}
	r.shortAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, c.Dst.Port())...)
	end()
	if err := r.send(); err != nil {
		return info, os.NewSyscallError("sendto", err)
	}
	found := false
	rerr := r.receive(func(m message) bool {
		switch {
		case m.seq != r.seq:
			return true
		case m.typ == unix.NLMSG_ERROR && len(m.data) >= 4:
			err = m.errno()
		case m.typ == unix.RTM_NEWROUTE:
			info, found = parseRoute(m.data)
		}
		return false
	})
	switch {
	case rerr != nil:
		return info, rerr
	case err != nil:
		return info, err
	case !found:
		return info, errors.New("the kernel's answer is no route")
	}
	return info, refusal(info.typ)
}

// refusal returns connect's error for a dead-end route. IPv4 returns this error instead of a route.
func refusal(typ uint8) error {
	switch typ {
	case unix.RTN_UNREACHABLE:
		return unix.EHOSTUNREACH
	case unix.RTN_PROHIBIT:
		return unix.EACCES
	case unix.RTN_BLACKHOLE:
		return unix.EINVAL
	}
	return nil
}

// shortAttr appends an attribute that is not a multiple of 4 bytes.
func (r *rtnl) shortAttr(typ uint16, value ...byte) {
	r.attr(typ, value)
	for len(r.buf)%4 != 0 {
		r.buf = append(r.buf, 0)
	}
}
