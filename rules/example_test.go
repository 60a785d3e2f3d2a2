package rules_test

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"pinproxy/rules"
)

func ExampleParse() {
	r, err := rules.Parse("*.Bank.example:8443,443=63990-63999  busy=wait:10s,any")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r)
	fmt.Println("source ports:", r.Pin().Ports().Len())
	fmt.Println("when all are busy:", r.Busy())
	// Output:
	// *.bank.example:443,8443=63990-63999 busy=wait:10s,any
	// source ports: 10
	// when all are busy: [wait:10s any]
}

func ExampleParse_error() {
	_, err := rules.Parse("10.20.1.0/16:443=63999 busy=any")
	var syntax *rules.SyntaxError
	if errors.As(err, &syntax) {
		fmt.Println(syntax.Caret())
		fmt.Println("error:", syntax.Msg)
		fmt.Println("hint:", syntax.Hint)
	}
	// Output:
	// 10.20.1.0/16:443=63999 busy=any
	// ^
	// error: 10.20.1.0/16 has bits set beyond its prefix length
	// hint: 10.20.0.0/16:443=63999 busy=any
}

func parse(texts ...string) []*rules.Rule {
	list := make([]*rules.Rule, len(texts))
	for i, text := range texts {
		r, err := rules.Parse(text)
		if err != nil {
			panic(err)
		}
		list[i] = r
	}
	return list
}

func ExampleSet() {
	set, err := rules.NewSet(parse(
		"*:443=60000",
		"*.bank.example:443=60001",
		"www.bank.example:1-1000=60002",
		"www.bank.example:443=60003",
		"192.0.2.0/24:443=60004",
	))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(set.Match("www.bank.example", netip.MustParseAddrPort("192.0.2.1:443")))
	fmt.Println(set.Match("www.bank.example", netip.MustParseAddrPort("192.0.2.1:80")))
	fmt.Println(set.Match("api.bank.example", netip.MustParseAddrPort("192.0.2.1:443")))
	fmt.Println(set.Match("", netip.MustParseAddrPort("192.0.2.1:443")))
	fmt.Println(set.Match("", netip.MustParseAddrPort("[2001:db8::1]:443")))
	fmt.Println(set.Match("", netip.MustParseAddrPort("[2001:db8::1]:22")))
	// Output:
	// www.bank.example:443=60003
	// www.bank.example:1-1000=60002
	// *.bank.example:443=60001
	// 192.0.2.0/24:443=60004
	// *:443=60000
	// <nil>
}

func ExampleNewSet_conflict() {
	_, err := rules.NewSet(parse("a.example:80,443=60000", "A.example.:443,8443=60001"))
	fmt.Println(err)
	// Output:
	// the rules "a.example:80,443=60000" and "a.example:443,8443=60001" are equally specific for port 443; give one of them fewer ports
}

func ExampleNames() {
	set, err := rules.NewSet(parse("*.bank.example:443=60001"))
	if err != nil {
		fmt.Println(err)
		return
	}
	names := rules.NewNames(set)
	dst := netip.MustParseAddrPort("192.0.2.1:443")
	asked := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)

	learned, err := names.Observe("www.bank.example", []netip.Addr{dst.Addr()}, time.Minute, true, asked)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("add", learned.Add[0].Dst, "to the route table of ports", set.PortSets()[learned.Add[0].Set])
	fmt.Println(names.Decide(dst).Rule)

	release := names.Hold(dst.Addr())
	fmt.Println("an hour later, in use:", len(names.Expired(asked.Add(time.Hour))), "expired")
	release()
	names.Expired(asked.Add(2 * time.Hour)) // now it is known when it was used last
	gone := names.Expired(asked.Add(2*time.Hour + rules.Grace))
	fmt.Println("a minute after use:", len(gone), "expired")
	names.Forget(gone)
	fmt.Println(names.Decide(dst).Rule)
	// Output:
	// add 192.0.2.1/32 to the route table of ports 443
	// *.bank.example:443=60001
	// an hour later, in use: 0 expired
	// a minute after use: 1 expired
	// <nil>
}
