package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"pinproxy/netstack/lab"
)

// keyMany: pinproxy with many rules and many addresses, learned from answers to queries that pass through it.

const (
	manyRules = 10_000
	manyAddrs = 100_000
	perName   = 60 // as many as fit into an answer
	manyNames = 1 + (manyAddrs+perName-1)/perName
)

// manyName returns the i-th name. Name 0 has the server's addresses. The others have addresses of 198.18.0.0/15,
// which is reserved for benchmarks (RFC 2544).
func manyName(i int) string { return fmt.Sprintf("h%d.many.example", i) }

func manyAnswer(q lab.Query) lab.Answer {
	i, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSuffix(q.Name, ".many.example"), "h"))
	if err != nil {
		return lab.Answer{}
	}
	var addrs []string
	if i == 0 {
		for _, a := range serverAddrs(0) {
			addrs = append(addrs, a.Addr().String())
		}
		return lab.Addrs(q, time.Hour, addrs...)
	}
	for n := (i - 1) * perName; n < min(i*perName, manyAddrs); n++ {
		addrs = append(addrs, netip.AddrFrom4([4]byte{198, 18 + byte(n>>16), byte(n >> 8), byte(n)}).String())
	}
	return lab.Addrs(q, time.Hour, addrs...)
}

// manyRulesFile returns the rule that matches the names above, and others of every kind.
func manyRulesFile() string {
	var b strings.Builder
	fmt.Fprintf(&b, "*.many.example:*=%s\n", pinRange)
	for i := 1; i < manyRules; i++ {
		if i%2 == 0 {
			fmt.Fprintf(&b, "*.zone%d.example:443=%s\n", i, pinRange)
		} else {
			fmt.Fprintf(&b, "198.%d.%d.%d/28:443=%s\n", 18+i>>12, byte(i>>4), byte(i<<4), pinRange)
		}
	}
	return b.String()
}
