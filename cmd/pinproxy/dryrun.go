package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"pinproxy/netstack/host"
	"pinproxy/rules"
)

// dryRun prints the changes that serve would make to this host in its current state.
func dryRun(ctx context.Context, o options, stdout io.Writer) error {
	c := hostConfig(o, nil)
	facts, err := host.Look(c.Link)
	if err != nil {
		return err
	}
	resolved, comments := resolve(ctx, o.set)
	c.Captures = append(c.Captures, resolved...)
	if facts.Gateways, err = host.LookGateways(o.gateways); err != nil {
		return err
	}
	steps, err := host.Plan(c, facts)
	if err != nil {
		return err
	}
	for _, w := range steps.Warnings {
		comments = append(comments, "warning: "+w.Error())
		if demand, ok := errors.AsType[*host.DemandError](w); ok {
			comments = append(comments, "hint: "+demand.Hint)
		}
	}
	for _, w := range pointless(o.set, o.rules.files) {
		comments = append(comments, "warning: "+w)
	}
	text := steps.String()
	for _, line := range comments {
		text += "# " + line + "\n"
	}
	return printText(stdout, text)
}

// resolve looks up the exact names of set as any program would. It returns as comments what can't be planned.
func resolve(ctx context.Context, set *rules.Set) (captures []host.Capture, comments []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, name := range set.Names() {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		if err != nil {
			comments = append(comments, fmt.Sprintf("no route for %s: %s", name, err))
		}
		for _, a := range addrs {
			if a = a.Unmap(); a.IsLoopback() {
				continue // as when pinproxy runs
			}
			for _, s := range set.NameSets(name) {
				captures = append(captures, host.Capture{Dst: netip.PrefixFrom(a, a.BitLen()), Set: s})
			}
		}
	}
	if set.HasNames() {
		comments = append(comments, "and such a route for each address that DNS answers tell of the rules' names, while pinproxy runs")
	}
	return captures, comments
}
