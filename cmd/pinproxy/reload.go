package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// SIGHUP makes us reread the rules files. The new rules replace the old ones, all or none:
//
//	read, parse, compile             a mistake: one log line with its place; nothing has changed
//	  │ no answer or expiry crosses the rest: learner.mu
//	names.Prepare                    where the old rules have none the new ones decide
//	host.Replace                     routes and policy rules come; it fails: undone, names.Cancel
//	  │ reloader.reset               flows of hosts behind a gateway that cannot be kept
//	  │                              what only the old rules want goes
//	names.Switch                     the new rules decide; for a minute the old ones where these have none
//	  │
//	resolved.update                  systemd-resolved asks us for the new rules' names
//	resolver.Change                  new exact names are looked up, up to 10 s
//	READY=1
//
// A flow keeps the rule that decided it, and its lease. This includes a flow that still waits for a port.
//
//	what fails                       what follows
//	a file can't be read, or is bad  the old rules stay
//	reading it does not end          likewise, after 10 s
//	the host refuses a change        what was changed is taken back, the old rules stay
//	ports can't be reserved          a warning, as at the start
//	a name can't be resolved         a warning, as at the start
//	SIGHUP while this is going on    once more after it

// lingerEvery is how often we look at flows that linger: those of hosts behind a gateway whose rule has gone.
const lingerEvery = time.Second

// lingerMost is how many flows may linger. Each takes a policy rule, and the kernel goes through all of them for each
// packet that it forwards: 512 take it some microseconds.
const lingerMost = 512

// readWait is how long reading a rules file may take. It never ends for a FIFO that nobody writes to, for a terminal,
// and for a file on a server that is gone.
const readWait = 10 * time.Second

// reloader rereads the rules.
type reloader struct {
	options  options
	log      *slog.Logger
	learn    *learner
	host     *host.Host
	pins     *proxy.Proxy
	resolver *dns.Resolver
	resolved *resolvedNames
	behind   func(netip.Addr) bool // whether this is the address of another host
	leased   []host.PortRange      // the current host.Config.Leased
	linger   bool                  // whether there are flows for host.Host.Linger
	reading  atomic.Bool           // whether a file is being read
}

// run rereads the rules at every hangup, until ctx ends.
func (r *reloader) run(ctx context.Context, hangups <-chan struct{}) error {
	tick := time.NewTicker(lingerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
			r.reload(ctx)
		case <-tick.C:
			if r.linger {
				r.lingering(r.learn.names.Set())
			}
		}
	}
}

func (r *reloader) reload(ctx context.Context) {
	notify(reloading())
	former := r.learn.names.Set()
	next, err := r.options.rules.load(former, func(path string) (string, error) { return r.text(ctx, path) })
	if err == nil {
		err = r.replace(ctx, former, next)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.refused(err)
		}
		return
	}
	r.pins.RetainRules(next.Rules())
	if r.linger {
		r.lingering(next) // flows that came in while the rules changed
	}
	warn(r.log, r.host, next, r.options.rules.files)
	r.resolved.update(ctx, next)
	r.resolver.Change(ctx, next.Names(), func() {
		added, removed := difference(former, next)
		r.log.Info("rules reread", "rules", len(next.Rules()), "added", added, "removed", removed)
		notify("READY=1\nSTATUS=")
	})
}

// text returns the rules file at path, or an error if that takes too long. Nothing can interrupt a read, so this one
// goes on then, alone, and must keep neither flows nor our own end waiting.
func (r *reloader) text(ctx context.Context, path string) (string, error) {
	if !r.reading.CompareAndSwap(false, true) {
		return "", errors.New("reading it, or another one, has not come to an end since the last time")
	}
	type result struct {
		text string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		text, err := readText(path)
		r.reading.Store(false)
		read <- result{text, err}
	}()
	select {
	case got := <-read:
		return got.text, got.err
	case <-time.After(readWait):
		return "", fmt.Errorf("it has not come to an end in %v", readWait)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// replace puts next in place.
func (r *reloader) replace(ctx context.Context, former, next *rules.Set) error {
	o := r.options
	o.set = next
	c := hostConfig(o, r.log)
	if o.strict {
		c.Leased = r.stillLeased(former)
	}
	err := r.learn.replace(next, func(learned []host.Capture) error {
		sure := func() {}
		if len(o.gateways) > 0 {
			keep, lost := r.uncaptured(former, next)
			var now []proxy.FlowInfo // go on to linger until next is sure, even if they are too many then
			if r.linger {
				now, _ = r.uncaptured(former)
			}
			r.keep(slices.Concat(now, keep))
			r.linger = true
			sure = func() { r.reset(lost, len(keep)) }
		}
		return r.host.Replace(ctx, c, learned, sure)
	})
	if err == nil {
		r.leased = c.Leased
	}
	return err
}

// stillLeased returns the port ranges of former pins that a flow leaves from, or may yet leave from.
func (r *reloader) stillLeased(former *rules.Set) []host.PortRange {
	ranges := rules.NewPortSet(slices.Concat(former.PinPorts().Ranges(), r.leased)...).Ranges()
	flows := r.pins.Flows()
	return slices.DeleteFunc(ranges, func(pin host.PortRange) bool {
		return !slices.ContainsFunc(flows, func(f proxy.FlowInfo) bool {
			return !f.Local.IsValid() || pin.First <= f.Local.Port() && f.Local.Port() <= pin.Last
		})
	})
}

// lingering keeps flows of hosts behind a gateway alive that the rules do not capture. If there are none, it
// need not be called again until rules change. It resets flows that can't be kept, as the kernel would forward what their
// hosts send next.
func (r *reloader) lingering(set *rules.Set) {
	keep, lost := r.uncaptured(set)
	r.reset(lost, len(keep))
	r.keep(keep)
	r.linger = len(keep) > 0
}

// uncaptured returns the flows of hosts behind a gateway that one of the sets does not capture. Lost are those that
// can't be kept: those for which there is no room, the longest idle ones, and those of masqueraded hosts, which have
// another address when the kernel looks at its rules.
func (r *reloader) uncaptured(sets ...*rules.Set) (keep, lost []proxy.FlowInfo) {
	flows := slices.DeleteFunc(r.pins.Flows(), func(f proxy.FlowInfo) bool {
		return f.Ending || !r.behind(f.Src.Addr()) || !slices.ContainsFunc(sets, func(s *rules.Set) bool {
			return s.Match(f.Name, f.Dst) == nil && (f.Dst.Port() != dnsPort || !s.HasNames())
		})
	})
	slices.SortStableFunc(flows, func(a, b proxy.FlowInfo) int { return cmp.Compare(a.Idle, b.Idle) })
	for _, f := range flows {
		if hidden(f.Src.Addr()) || len(keep) == lingerMost {
			lost = append(lost, f)
		} else {
			keep = append(keep, f)
		}
	}
	return keep, lost
}

// reset ends flows that uncaptured has found lost, beside those kept.
func (r *reloader) reset(lost []proxy.FlowInfo, kept int) {
	if len(lost) == 0 {
		return
	}
	r.log.Warn("connections of hosts behind a gateway are reset: their rule is gone", "reset", len(lost), "kept", kept)
	r.pins.Reset(lost, "its rule is gone")
}

// keep makes these flows linger, and no others.
func (r *reloader) keep(flows []proxy.FlowInfo) {
	ends := make([][2]netip.AddrPort, len(flows))
	for i, f := range flows {
		ends[i] = [2]netip.AddrPort{f.Src, f.Dst}
	}
	if err := r.host.Linger(ends); err != nil {
		r.log.Warn("keep flows of hosts behind a gateway: " + err.Error())
	}
}

// refused says why the rules have not changed.
func (r *reloader) refused(err error) {
	attrs := []any{"err", err.Error()}
	var syntax *rules.SyntaxError
	if errors.As(err, &syntax) && syntax.Hint != "" {
		attrs = append(attrs, "hint", ruleHint(syntax))
	}
	r.log.Error("rules not reread, the former ones stay", attrs...)
	notify(fmt.Sprintf("READY=1\nSTATUS=rules not reread: %s", oneLine(err.Error())))
}

// difference counts the rules that only one of two sets has.
func difference(former, next *rules.Set) (added, removed int) {
	count := make(map[string]int)
	for _, r := range next.Rules() {
		count[r.String()]++
	}
	for _, r := range former.Rules() {
		count[r.String()]--
	}
	for _, n := range count {
		added += max(n, 0)
		removed += max(-n, 0)
	}
	return added, removed
}
