package resolved

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	lookEvery   = 10 * time.Second // between checks of the link's settings, since D-Bus may not report changes
	lateAgain   = time.Second      // until resolved is told again, if it did not answer in time
	firstDial   = time.Second      // until D-Bus is looked for again; doubled each time
	lastDial    = time.Minute
	activeWait  = 2 * time.Second // until resolved uses the link it was told about
	calmAfter   = time.Minute     // without other programs overwriting the settings
	slowestBack = time.Minute     // between two attempts to restore them
)

var (
	errElsewhere = errors.New("systemd-resolved belongs to another network namespace")
	errHidden    = errors.New("/proc does not show other users' processes, so not whether systemd-resolved belongs to this network namespace")
	errInactive  = errors.New("systemd-resolved does not use the link")
)

// Config says what to register.
type Config struct {
	Link    string     // name of the device, for the log
	Index   int        // interface number of the device
	Server  netip.Addr // where queries for Domains are to be sent; the creator of the Registration answers them
	Domains []string   // names, lower case and without a final dot; names below one count as well
	Bus     Handed     // used first
	Log     *slog.Logger
}

// Registration makes a link the resolver for some domains and keeps it registered. Its methods are safe for
// concurrent use.
type Registration struct {
	cfg   Config
	log   *slog.Logger
	tried chan struct{}
	life  context.Context // ends with Withdraw or Revert, and every look with it
	end   context.CancelFunc

	// setting serialises changes to resolved's settings. Locked before mu.
	setting  sync.Mutex
	known    []string // domains registered at resolved, nil for none; its cache has no answers for names outside them
	told     bool     // resolved has been sent settings of the link, perhaps only some
	back     time.Duration
	backLast time.Time
	trouble  string

	reading chan struct{} // full while queries have resolved's servers read

	mu      sync.Mutex
	bus     bus      // no conn: no D-Bus; no owner: no resolved
	ended   bool     // Withdraw or Revert was called
	domains []string // folded
	all     []scope  // as last read
	readAt  time.Time
}

// New returns a Registration. It starts nothing.
func New(c Config) *Registration {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	life, end := context.WithCancel(context.Background())
	return &Registration{
		cfg: c, log: c.Log, life: life, end: end,
		tried:   make(chan struct{}),
		reading: make(chan struct{}, 1),
		domains: fold(c.Domains, maxDomains),
	}
}

// Tried is closed when the link is registered, or when an attempt has failed.
func (r *Registration) Tried() <-chan struct{} { return r.tried }

// Update registers other domains. It returns when that is done or an attempt has failed.
func (r *Registration) Update(ctx context.Context, domains []string) {
	r.mu.Lock()
	r.domains = fold(domains, maxDomains)
	r.mu.Unlock()
	r.look(ctx)
}

// Run registers the link, and registers it again whenever needed, until ctx ends. It undoes nothing: see
// [Registration.Withdraw] and [Registration.Revert].
func (r *Registration) Run(ctx context.Context) error {
	tried := sync.OnceFunc(func() { close(r.tried) })
	defer tried()
	handed := r.cfg.Bus
	for wait := firstDial; ; wait = min(2*wait, lastDial) {
		was := r.attend(ctx, handed, tried)
		if handed.FD != 0 {
			if handed = (Handed{}); !was {
				continue
			}
		}
		if was {
			wait = firstDial
		}
		tried()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// attend keeps the link registered while D-Bus is available, and reports whether it was available.
func (r *Registration) attend(ctx context.Context, handed Handed, tried func()) bool {
	signals := make(chan *dbus.Signal, 16)
	conn, err := openBus(ctx, handed, signals)
	if err != nil {
		r.log.Debug("no D-Bus", "err", err.Error())
		return false
	}
	defer conn.Close()
	defer r.meet(bus{})
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for owner := ""; ; {
		now, err := findOwner(ctx, conn)
		if err != nil {
			r.log.Debug("ask D-Bus for systemd-resolved", "err", err.Error())
		}
		if now != owner {
			owner = now
			r.meet(bus{conn, owner})
		}
		if owner != "" {
			if wait := r.look(ctx); wait > 0 {
				again.Reset(wait)
			}
		}
		tried()
		select {
		case <-ctx.Done():
			return true
		case _, ok := <-signals:
			if !ok {
				return true
			}
		case <-conn.Context().Done():
			return true
		case <-again.C:
		case <-tick.C:
		}
	}
}

// meet sets the current resolved.
func (r *Registration) meet(b bus) {
	r.setting.Lock()
	defer r.setting.Unlock()
	r.known, r.told, r.back = nil, false, 0
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bus = b
}

func (r *Registration) current() (b bus, domains []string, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bus, r.domains, r.ended
}

// look compares the link's settings with the wanted ones and registers the link if they differ. It returns when to
// look again, if that is soon.
func (r *Registration) look(ctx context.Context) (again time.Duration) {
	r.setting.Lock()
	defer r.setting.Unlock()
	b, domains, ended := r.current()
	if b.owner == "" || ended {
		return 0
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.life, cancel)() // the end must not wait for a resolved that hangs
	again, err := r.settle(ctx, b, domains)
	r.tell(ctx, err)
	if errors.Is(err, context.DeadlineExceeded) {
		// At boot it may have to wait for polkit, which is started for the question whether our user may tell it.
		again = lateAgain
	}
	return again
}

// settle does the work of look.
func (r *Registration) settle(ctx context.Context, b bus, domains []string) (again time.Duration, err error) {
	if len(domains) == 0 && !r.told {
		return 0, nil
	}
	if err := b.checkNamespace(ctx); err != nil {
		return 0, err
	}
	all, fallback, err := b.read(ctx, r.cfg.Index, r.cfg.Server)
	if err != nil {
		return 0, err
	}
	r.keep(all)
	// Our link would take these names away from multicast DNS.
	domains = slices.DeleteFunc(slices.Clone(domains), func(d string) bool { return multicastOnly(all, d) })
	if len(domains) == 0 {
		return 0, r.release(ctx, b)
	}
	rivals := rivals(all, domains)
	domains = fold(append(domains, rivals...), maxDomains)
	want := settings{
		server: r.cfg.Server, domains: domains, defaultRoute: fallback, dnssec: strictest(all, domains),
	}
	v, err := b.link(ctx, r.cfg.Index)
	stand := err == nil && want.stand(v)
	registered := slices.Equal(r.known, domains)
	switch {
	case stand && registered:
		return 0, r.active(ctx, b)
	case registered:
		if wait := r.overwritten(); wait > 0 {
			return wait, nil
		}
	}
	if !stand { // a restarted resolved may still have the settings
		if err := want.apply(ctx, b, r.cfg.Index); err != nil {
			if _, refused := errors.AsType[dbus.Error](err); !refused {
				r.told = true // it may still follow what it was sent
			}
			return 0, err
		}
	}
	r.told = true
	if r.known != nil && !subset(domains, r.known) || len(rivals) > 0 {
		// Below a new domain, resolved may have cached answers from a time when the domain was registered before. Those
		// of a rival would win over ours.
		if err := b.set(ctx, "FlushCaches"); err != nil {
			return 0, err
		}
	}
	r.known = domains
	if err := r.active(ctx, b); err != nil {
		return 0, err
	}
	r.report(registered, rivals)
	return 0, nil
}

// release takes back what resolved was told, as there are no domains.
func (r *Registration) release(ctx context.Context, b bus) error {
	r.known = nil
	if !r.told {
		return nil
	}
	err := r.revert(ctx, b)
	r.told = err != nil
	return err
}

// report logs that the link is registered, or was so and is again, and which domains it shares with other interfaces.
func (r *Registration) report(again bool, rivals []string) {
	if again {
		r.log.Warn("put back the link's DNS settings, which somebody changed", "link", r.cfg.Link)
	} else {
		r.log.Info("systemd-resolved asks pinproxy for the rules' names", "link", r.cfg.Link, "domains", r.known)
	}
	if len(rivals) > 0 {
		r.log.Warn("systemd-resolved asks another interface too for names in these domains, and takes the first answer, mostly that one's: connections to names that only a wildcard is for leave unpinned",
			"link", r.cfg.Link, "domains", rivals, "hint", "rules for exact names, or for addresses, are followed all the same; or take the domain off the interface, as by `resolvectl domain eth0 ''`, if its names are found without that")
	}
}

// overwritten counts another time that the link's settings were changed elsewhere, and returns how long to wait
// before restoring them.
func (r *Registration) overwritten() time.Duration {
	now := time.Now()
	if now.Sub(r.backLast) > calmAfter {
		r.back = 0
	}
	if wait := time.Until(r.backLast.Add(r.back)); wait > 0 {
		return wait
	}
	r.backLast = now
	r.back = min(max(2*r.back, time.Second), slowestBack)
	return 0
}

// active waits until resolved uses the link for queries. resolved learns of the link's address and carrier
// asynchronously.
func (r *Registration) active(ctx context.Context, b bus) error {
	for end := time.Now().Add(activeWait); ; {
		v, err := b.link(ctx, r.cfg.Index)
		switch {
		case err != nil:
			return err
		case v.mask("ScopesMask")&scopeDNS != 0:
			return nil
		case time.Now().After(end):
			return errInactive
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tell logs what prevents registration, once.
func (r *Registration) tell(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil {
		if err == nil {
			r.trouble = ""
		}
		return
	}
	if text := err.Error(); text != r.trouble {
		r.trouble = text
		if errors.Is(err, errElsewhere) {
			r.log.Debug(text)
			return
		}
		args := []any{"link", r.cfg.Link, "err", text}
		if h := hint(err, r.cfg.Link); h != "" {
			args = append(args, "hint", h)
		}
		r.log.Warn("systemd-resolved can't be told to ask pinproxy for the rules' names: those that it looks up are not captured in time", args...)
	}
}

func hint(err error, link string) string {
	switch {
	case isError(err, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "org.freedesktop.DBus.Error.AccessDenied"):
		return "allow it to this user by a polkit rule, packaging/polkit/50-pinproxy.rules, or start pinproxy as root"
	case isError(err, service+".LinkBusy"):
		return fmt.Sprintf("systemd-networkd manages %s: keep it from that by Unmanaged=yes in a .network file, or packaging/udev/80-pinproxy.rules", link)
	case errors.Is(err, errHidden):
		return "have /proc show them to this user: ProtectProc=default in a unit, or no hidepid= at its mount"
	case errors.Is(err, errInactive):
		return fmt.Sprintf("see what `resolvectl status %s` and `networkctl status %s` say", link, link)
	}
	return ""
}

// Withdraw removes the domains, so that resolved sends new queries where it did before. Queries that it has already
// sent to us must still be answered.
func (r *Registration) Withdraw(ctx context.Context) error {
	return r.undo(ctx, func(b bus) error {
		return errors.Join(b.set(ctx, "SetLinkDomains", int32(r.cfg.Index), []domain{}), ignoreUnknown(b.set(ctx, "SetLinkDefaultRoute", int32(r.cfg.Index), false)))
	})
}

// Revert undoes everything that resolved was told about the link.
func (r *Registration) Revert(ctx context.Context) error {
	return r.undo(ctx, func(b bus) error { return r.revert(ctx, b) })
}

func (r *Registration) revert(ctx context.Context, b bus) error {
	return b.set(ctx, "RevertLink", int32(r.cfg.Index))
}

// undo ends a look under way, calls f if the link is registered, and prevents further registration.
func (r *Registration) undo(ctx context.Context, f func(bus) error) error {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.end()
	r.setting.Lock()
	defer r.setting.Unlock()
	b, _, _ := r.current()
	if b.owner == "" || !r.told {
		return nil
	}
	if err := f(b); err != nil && ctx.Err() == nil && b.conn.Connected() {
		return fmt.Errorf("take the link's DNS settings back from systemd-resolved: %w", err)
	}
	return nil
}
