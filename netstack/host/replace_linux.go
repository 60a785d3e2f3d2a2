package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Replace makes the host capture what c says, plus the learned captures, in place of what Apply or an earlier
// Replace made it capture. From c it takes PortSets, Captures, DNS, Reserve and Leased; the rest stays as it
// is. A port set that c has at the same index as before is kept, as is each route and rule that both want: they
// stay in place all the time. All additions precede the first removal. In between, when there is hardly anything left
// that may fail, sure is called. It must not use the host.
//
// It is all or nothing: after an error everything is as before. A failure to reserve ports is not an error but
// one of the Warnings, as with Apply. No Add or Remove may run at the same time, because whatever learned omits
// is removed.
func (h *Host) Replace(ctx context.Context, c Config, learned []Capture, sure func()) error {
	h.looking.Lock() // no repair in between
	defer h.looking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel == nil || h.stopped {
		return errUndone
	}
	next := h.cfg
	next.capture(c)
	ch, err := planChange(next, learned, standing{h.rules(), h.routes})
	if err != nil {
		return err
	}
	if h.cfg.Log.Enabled(ctx, slog.LevelDebug) {
		for line := range strings.Lines(ch.text(next)) {
			h.cfg.Log.Debug("change the host: " + strings.TrimSuffix(line, "\n"))
		}
	}
	reserve := h.replaceReserved(next)
	undo, err := h.carryOut(ctx, ch, sure)
	if err != nil {
		return errors.Join(err, undo(), reserve.cancel())
	}
	h.cfg.capture(c)
	h.routes = ch.then.routes
	for fam, rules := range ch.then.rules {
		h.parts[fam] = withRules(h.parts[fam], rules)
	}
	h.warnings = reserve.finish()
	return nil
}

// capture copies the fields that other rules change in a configuration. It writes no other field: those are
// read without Host.mu.
func (c *Config) capture(other Config) {
	c.PortSets, c.Captures, c.DNS = other.PortSets, other.Captures, other.DNS
	c.Reserve, c.Leased = other.Reserve, other.Leased
}

// rules returns the rules of the captured families, except those of Linger.
func (h *Host) rules() map[family][]rule {
	rules := make(map[family][]rule)
	for _, fam := range []family{v4, v6} {
		if h.on(fam) {
			rules[fam] = nil
		}
		for _, s := range h.parts[fam] {
			if r, ok := s.(rule); ok && !r.lingers() {
				rules[fam] = append(rules[fam], r)
			}
		}
	}
	return rules
}

// withRules returns part with other rules.
func withRules(part []Step, rules []rule) []Step {
	part = slices.DeleteFunc(part, func(s Step) bool { r, ok := s.(rule); return ok && !r.lingers() })
	for _, r := range rules {
		part = append(part, r)
	}
	return part
}

// carryOut makes the changes, and calls sure before it removes anything. The undo reverts those that were made, in
// reverse, and may be called only after an error.
func (h *Host) carryOut(ctx context.Context, ch change, sure func()) (undo func() error, err error) {
	var undos []func() error
	try := func(do, back func() error) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			undos = append(undos, back) // also after a partial change
			err = do()
		}
	}
	for part := range slices.Chunk(ch.addRoutes, atOnce) {
		try(func() error { return h.addRoutes(part) }, func() error { return h.kernel.delRoutes(part) })
	}
	for _, r := range ch.addRules {
		try(func() error { return h.addRule(r) }, func() error { return h.kernel.undo(r) })
	}
	if err == nil {
		sure()
	}
	for _, r := range ch.delRules {
		try(func() error { return h.kernel.undo(r) }, func() error { return h.addRule(r) })
	}
	for part := range slices.Chunk(ch.delRoutes, atOnce) {
		try(func() error { return h.kernel.delRoutes(part) }, func() error { return h.addRoutes(part) })
	}
	return func() error {
		var errs []error
		for _, back := range slices.Backward(undos) {
			errs = append(errs, back())
		}
		return errors.Join(errs...)
	}, err
}

func (h *Host) addRoutes(list []dest) error {
	_, err := h.kernel.addRoutes(list)
	return err
}

// addRule adds a rule that may already exist.
func (h *Host) addRule(r rule) error {
	if err := h.kernel.do(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// reserving is a change of the reserved ports. The new ones are already reserved.
type reserving struct {
	host         *Host
	before, then ports // the ports that were ours, and will be
	errs         []error
}

// replaceReserved reserves what c wants, in addition to what is ours.
func (h *Host) replaceReserved(c Config) *reserving {
	r := &reserving{host: h, before: h.mine}
	if len(c.Reserve) == 0 && h.mine.empty() {
		return r
	}
	r.then = h.mine // unless all goes well
	facts, err := look(h.dump, c.Link, h.kernel.link)
	if err != nil {
		r.warn(err)
		return r
	}
	facts.Reserved = newPorts(facts.Reserved).without(h.mine).ranges()
	want, err := portsToReserve(c, facts)
	r.warn(err)
	if h.reserved == nil && !want.empty() {
		if err := h.openReserved(); err != nil {
			r.warn(unreserved(want, err))
			return r
		}
	}
	if r.change(h.mine.or(want)) {
		r.then = want
	}
	return r
}

func (r *reserving) warn(err error) {
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// change makes then our ports, and reports whether they are. What was reserved before stays so if it fails.
func (r *reserving) change(then ports) bool {
	h := r.host
	if h.reserved == nil || then == h.mine {
		return true
	}
	if err := h.reserved.change(h.mine, then); err != nil {
		if more := then.without(h.mine); !more.empty() {
			err = unreserved(more, err)
		} else {
			err = fmt.Errorf("ports %v stay reserved: %w", h.mine.without(then), err)
		}
		r.warn(err)
		return false
	}
	h.mine = then
	return true
}

// finish releases what is no longer wanted, and returns what went wrong.
func (r *reserving) finish() []error {
	r.change(r.then)
	return r.errs
}

// cancel restores the previous ports.
func (r *reserving) cancel() error {
	r.errs = nil
	r.change(r.before)
	return errors.Join(r.errs...)
}
