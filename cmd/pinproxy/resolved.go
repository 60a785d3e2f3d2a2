package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/netstack/resolved"
	"pinproxy/proxy"
	"pinproxy/rules"
)

const (
	// resolvedWait limits how long systemd-resolved may hold up the start, or new rules.
	resolvedWait = 3 * time.Second
	// revertWait limits how long it may hold up each step of the end. What it was told also goes away with the link.
	revertWait = time.Second
)

// standIn is the name server that systemd-resolved is given. It is an address of 192.0.0.0/24, which IANA reserves
// for protocols (RFC 6890), next to the link's own and assigned to nothing.
var standIn = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 0, 53}), dnsPort)

// resolvedNames brings queries for the rules' names to us if systemd-resolved looks them up.
type resolvedNames struct {
	link    *resolved.Registration
	queries *dns.Forwarder // its queries to us
	guard   *guard
	log     *slog.Logger
}

func newResolved(e *engine, bus resolved.Handed, guard *guard) (*resolvedNames, error) {
	link := e.dev.Name()
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return nil, fmt.Errorf("find the number of %s: %w", link, err)
	}
	r := &resolvedNames{guard: guard, log: e.log}
	r.link = resolved.New(resolved.Config{
		Link: link, Index: dev.Index, Server: standIn.Addr(), Domains: domains(e.set), Bus: bus, Log: e.log,
	})
	dial := func(ctx context.Context, network string, link int, dst netip.AddrPort) (net.Conn, error) {
		return proxy.Sockets{Mark: host.Mark, Link: link}.DialPlain(ctx, network, dst)
	}
	r.queries = dns.NewForwarder(dial, r.link.Upstreams, e.learn, e.log)
	return r, nil
}

// domains returns the names of the rules. A wildcard's domain stands for all names below it.
func domains(set *rules.Set) (list []string) {
	for _, r := range set.Rules() {
		if name := r.Host().Name(); name != "" {
			list = append(list, name)
		}
	}
	return list
}

// meant says whether something is for the stand-in, which only this host may use: hosts behind a gateway must not
// learn whom systemd-resolved knows.
func (r *resolvedNames) meant(src, dst netip.AddrPort) bool {
	return dst == standIn && !r.guard.behind(src.Addr())
}

// handle takes over a datagram if it is for the stand-in.
func (r *resolvedNames) handle(d *netstack.Datagram) bool {
	if !r.meant(d.Src(), d.Dst()) {
		return false
	}
	r.queries.Handle(d)
	return true
}

// carry takes over a connection if it is to the stand-in, and returns at its end.
func (r *resolvedNames) carry(ctx context.Context, f *netstack.Flow) bool {
	if !r.meant(f.Src(), f.Dst()) {
		return false
	}
	if c, err := f.Accept(); err == nil {
		r.queries.Stream(ctx, c)
	}
	return true
}

// await returns when the link is registered or an attempt has failed.
func (r *resolvedNames) await(ctx context.Context) {
	select {
	case <-r.link.Tried():
	case <-ctx.Done():
	case <-time.After(resolvedWait):
	}
}

// update makes systemd-resolved ask us for the names of set instead of the previous ones.
func (r *resolvedNames) update(ctx context.Context, set *rules.Set) {
	ctx, cancel := context.WithTimeout(ctx, resolvedWait)
	defer cancel()
	r.link.Update(ctx, domains(set))
}

// withdraw makes systemd-resolved ask others again.
func (r *resolvedNames) withdraw(ctx context.Context) { r.undo(ctx, r.link.Withdraw) }

// revert takes everything back once systemd-resolved's pending queries to us are answered.
func (r *resolvedNames) revert(ctx context.Context) {
	r.undo(ctx, func(ctx context.Context) error {
		r.queries.Drain(ctx)
		return r.link.Revert(context.WithoutCancel(ctx)) // Revert has a time limit of its own
	})
}

// undo undoes what can be undone in a short time.
func (r *resolvedNames) undo(ctx context.Context, what func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, revertWait)
	defer cancel()
	if err := what(ctx); err != nil {
		r.log.Warn(err.Error())
	}
}
