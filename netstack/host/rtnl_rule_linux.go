package host

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Package netlink adds and deletes rules too, but sends their IP protocol as four bytes. The kernel takes the first one,
// which is the right one only where numbers begin with their low byte, and complains in its log each time ("attribute type
// 22 has an invalid length").

// addRule adds a rule of ours. Its error is EEXIST if there is one.
func (r *rtnl) addRule(s rule) error {
	return r.rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, s)
}

// delRule deletes a rule of ours: the first one that has what s says.
func (r *rtnl) delRule(s rule) error { return r.rule(unix.RTM_DELRULE, 0, s) }

// delRuleAt deletes a rule of ours with a priority, whatever else it says.
func (r *rtnl) delRuleAt(fam family, pref int) error {
	r.buf = r.buf[:0]
	end := r.begin(unix.RTM_DELRULE, unix.NLM_F_ACK)
	r.ruleHeader(rule{fam: fam, pref: pref}, unix.FR_ACT_UNSPEC)
	end()
	return r.ask()
}

// invertRule is FIB_RULE_INVERT of linux/fib_rules.h.
const invertRule = 2

func (r *rtnl) rule(typ, flags uint16, s rule) error {
	r.buf = r.buf[:0]
	end := r.begin(typ, flags|unix.NLM_F_ACK)
	r.ruleHeader(s, s.kind())
	r.prefixAttr(unix.FRA_DST, s.to)
	r.prefixAttr(unix.FRA_SRC, s.from)
	if s.mark != 0 {
		r.attr32(unix.FRA_FWMARK, s.mark)
	}
	if name := s.incoming(); name != "" {
		r.shortAttr(unix.FRA_IIFNAME, append([]byte(name), 0)...)
	}
	if s.proto != 0 {
		r.shortAttr(unix.FRA_IP_PROTO, s.proto)
	}
	r.portsAttr(unix.FRA_SPORT_RANGE, s.sport)
	r.portsAttr(unix.FRA_DPORT_RANGE, s.dport)
	switch s.action {
	case lookup:
		r.attr32(unix.FRA_TABLE, uint32(s.table))
	case skip:
		r.attr32(unix.FRA_GOTO, prefEnd)
	}
	end()
	return r.ask()
}

// ruleHeader appends a struct fib_rule_hdr, and what all rules of ours have.
func (r *rtnl) ruleHeader(s rule, kind uint8) {
	flags := uint32(0)
	if s.not {
		flags = invertRule
	}
	r.buf = append(r.buf, s.fam.af(), prefixLen(s.to), prefixLen(s.from), 0, unix.RT_TABLE_UNSPEC, 0, 0, kind)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, flags)
	r.attr32(unix.FRA_PRIORITY, uint32(s.pref))
	r.shortAttr(unix.FRA_PROTOCOL, Protocol)
}

// kind is the rule's action for the kernel.
func (s rule) kind() uint8 {
	switch s.action {
	case skip:
		return unix.FR_ACT_GOTO
	case unreachable:
		return unix.FR_ACT_UNREACHABLE
	case nop:
		return unix.FR_ACT_NOP
	}
	return unix.FR_ACT_TO_TBL
}

// incoming is the name of the device that a packet must have come in through, empty for any.
func (s rule) incoming() string {
	if s.lo {
		return "lo"
	}
	return s.iif
}

func prefixLen(p netip.Prefix) uint8 {
	if !p.IsValid() {
		return 0
	}
	return uint8(p.Bits())
}

// prefixAttr appends a prefix's address, if there is one.
func (r *rtnl) prefixAttr(typ uint16, p netip.Prefix) {
	if p.IsValid() {
		r.attr(typ, p.Addr().AsSlice())
	}
}

// portsAttr appends a struct fib_rule_port_range, if there is one.
func (r *rtnl) portsAttr(typ uint16, ports PortRange) {
	if ports != (PortRange{}) {
		r.attr(typ, binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, ports.First), ports.Last))
	}
}

// ask sends the request in buf, which must be a single one, and returns the kernel's answer.
func (r *rtnl) ask() error {
	if err := r.send(); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	var answer error
	err := r.receive(func(m message) bool {
		if m.seq != r.seq || m.typ != unix.NLMSG_ERROR || len(m.data) < 4 {
			return true
		}
		if errno := m.errno(); errno != 0 {
			answer = errno
		}
		return false
	})
	if err != nil {
		return err
	}
	return answer
}
