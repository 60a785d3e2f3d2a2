package host

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// theirs is the rule as package netlink has it.
func (s rule) theirs() *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = int(s.fam.af()), s.pref, Protocol
	r.Invert, r.Mark, r.IPProto, r.IifName = s.not, s.mark, int(s.proto), s.incoming()
	if s.from.IsValid() {
		r.Src = ipNet(s.from)
	}
	if s.to.IsValid() {
		r.Dst = ipNet(s.to)
	}
	if s.sport != (PortRange{}) {
		r.Sport = netlink.NewRulePortRange(s.sport.First, s.sport.Last)
	}
	if s.dport != (PortRange{}) {
		r.Dport = netlink.NewRulePortRange(s.dport.First, s.dport.Last)
	}
	switch r.Type = s.kind(); s.action {
	case lookup:
		r.Table = s.table
	case skip:
		r.Goto = prefEnd
	}
	return r
}

// The kernel reads from our requests what package netlink reads back, and deletes only the rule that is named.
func TestRules(t *testing.T) {
	b := newBench(t)
	var r *rtnl
	if err := b.Client.Do(func() (err error) { r, err = openRTNL(); return err }); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for _, fam := range []family{v4, v6} {
		one := netip.PrefixFrom(fam.source(), fam.source().BitLen())
		some := netip.PrefixFrom(fam.source(), 24).Masked()
		rules := []rule{
			{pref: prefEnd, action: nop},
			{pref: 4000, mark: 0x70, action: skip},
			{pref: 4001, from: one, lo: true, table: 40000},
			{pref: 4002, from: one, action: unreachable},
			{pref: 4003, not: true, from: some, to: some, iif: "eth9", action: skip},
			{pref: 4004, proto: protoTCP, sport: PortRange{1, 2}, table: 254},
			{pref: 4004, proto: protoTCP, dport: PortRange{53, 53}, table: 40002},
			{pref: 4004, proto: protoUDP, dport: PortRange{53, 53}, table: 40002},
		}
		want := make([]netlink.Rule, len(rules))
		for i := range rules {
			rules[i].fam = fam
			if err := r.addRule(rules[i]); err != nil {
				t.Fatal(rules[i], err)
			}
			at := (i + len(rules) - 1) % len(rules) // prefEnd comes last
			want[at] = *rules[i].theirs()
			want[at].Type = 0 // package netlink does not read it
		}
		got := func() []netlink.Rule {
			t.Helper()
			list, err := ourRules(b.Client.Netlink(), fam)
			if err != nil {
				t.Fatal(err)
			}
			for i := range list {
				list[i].Mask = nil // the kernel adds it to a mark
			}
			return list
		}
		same := func() {
			t.Helper()
			for i, found := range got() {
				if !reflect.DeepEqual(found, want[i]) {
					t.Errorf("%v, rule %d:\n%+v, want\n%+v", fam, i, found, want[i])
				}
			}
		}
		same()
		if err := r.addRule(rules[1]); err != unix.EEXIST {
			t.Errorf("added again: %v, want EEXIST", err)
		}
		if err := r.delRule(rules[7]); err != nil {
			t.Error(err)
		}
		want = append(want[:6], want[7])
		same()
		if err := r.delRule(rules[7]); err != unix.ENOENT {
			t.Errorf("deleted again: %v, want ENOENT", err)
		}
		for range want {
			if err := r.delRuleAt(fam, got()[0].Priority); err != nil {
				t.Error(err)
			}
		}
		if left := got(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// An attribute of the wrong length makes the kernel complain in its log.
func TestRuleAttributes(t *testing.T) {
	r := &rtnl{fd: -1}
	_ = r.addRule(rule{pref: 4004, mark: 1, iif: "eth0", proto: protoTCP, sport: PortRange{1, 2}, table: 40002})
	want := map[uint16]int{
		unix.FRA_PRIORITY: 4, unix.FRA_PROTOCOL: 1, unix.FRA_FWMARK: 4, unix.FRA_IIFNAME: 5,
		unix.FRA_IP_PROTO: 1, unix.FRA_SPORT_RANGE: 4, unix.FRA_TABLE: 4,
	}
	got := map[uint16]int{}
	for m := range messages(r.buf) {
		for typ, value := range attributes(m.data[unix.SizeofRtMsg:]) {
			got[typ] = len(value)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("lengths of attributes: %v, want %v", got, want)
	}
}
