package lab

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Zone returns an answer function for [Host.DNS] from static records, one per line: name, TTL in seconds, type (A,
// AAAA, CNAME), value.
//
//	www.bank.example 30 CNAME a.bank.example
//	a.bank.example   30 A     203.0.113.2
//	a.bank.example   30 AAAA  2001:db8:2::2
//
// CNAMEs are followed. An unknown name gets NXDOMAIN; a name without records of the type gets no records. Zone
// panics on a line that it can't parse.
func Zone(text string) func(Query) Answer {
	records := make(map[string][]dnsmessage.Resource)
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 {
			r, err := record(fields)
			if err != nil {
				panic(fmt.Sprintf("lab: zone line %q: %v", strings.TrimSpace(line), err))
			}
			name := canonical(fields[0])
			records[name] = append(records[name], r)
		}
	}
	return func(q Query) Answer {
		var a Answer
		name := q.Name
		for range 16 { // bounds a circular chain
			found, ok := records[name]
			if !ok {
				if len(a.Records) == 0 {
					a.RCode = dnsmessage.RCodeNameError
				}
				return a
			}
			next := ""
			for _, r := range found {
				switch body := r.Body.(type) {
				case *dnsmessage.CNAMEResource:
					next = canonical(body.CNAME.String())
					a.Records = append(a.Records, r)
				default:
					if r.Header.Type == q.Type {
						a.Records = append(a.Records, r)
					}
				}
			}
			if next == "" || q.Type == dnsmessage.TypeCNAME {
				return a
			}
			name = next
		}
		return a
	}
}

// Addrs answers q with those of addrs that have the requested type.
func Addrs(q Query, ttl time.Duration, addrs ...string) Answer {
	var a Answer
	for _, addr := range addrs {
		if r := addrRecord(netip.MustParseAddr(addr), ttl); r.Header.Type == q.Type {
			a.Records = append(a.Records, r)
		}
	}
	return a
}

func record(fields []string) (r dnsmessage.Resource, err error) {
	if len(fields) != 4 {
		return r, fmt.Errorf("%d fields instead of name, TTL, type and value", len(fields))
	}
	ttl, err := strconv.Atoi(fields[1])
	if err != nil {
		return r, err
	}
	lifetime := time.Duration(ttl) * time.Second
	switch kind, value := fields[2], fields[3]; kind {
	case "A", "AAAA":
		addr, err := netip.ParseAddr(value)
		if err != nil {
			return r, err
		}
		r = addrRecord(addr, lifetime)
		if (kind == "A") != addr.Is4() {
			return r, fmt.Errorf("%s of the other family", value)
		}
	case "CNAME":
		target, err := dnsmessage.NewName(canonical(value) + ".")
		if err != nil {
			return r, err
		}
		r = dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Type: dnsmessage.TypeCNAME, TTL: uint32(ttl)},
			Body:   &dnsmessage.CNAMEResource{CNAME: target},
		}
	default:
		return r, fmt.Errorf("unknown type %s", kind)
	}
	r.Header.Name, err = dnsmessage.NewName(canonical(fields[0]) + ".")
	return r, err
}

func addrRecord(addr netip.Addr, ttl time.Duration) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Type: dnsmessage.TypeA, TTL: uint32(ttl / time.Second)}
	if addr.Is4() {
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}}
	}
	h.Type = dnsmessage.TypeAAAA
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}
}

// canonical returns a name in lower case without the final dot.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
