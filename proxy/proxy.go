package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// Conn is a stream whose directions close one by one; *net.TCPConn is one. It is an alias of an unnamed type, so that
// other packages can declare the same type.
//
// After SetLinger(0), Close ends the stream by a reset.
type Conn = interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// Flow is an application's connection that has not been answered yet. It is answered once, by AcceptFunc, Reject or
// Drop.
type Flow interface {
	Number() uint64      // identifies the flow; waiting flows are served in this order
	Src() netip.AddrPort // the application
	Dst() netip.AddrPort // where it connects to
	Signed() bool        // the application takes signed segments only, by TCP-MD5 or TCP-AO
	// AcceptFunc completes the application's handshake, then calls then, on any goroutine. then owns the Conn. The error is
	// ECONNRESET if the application has reset a connection that, for its kernel, was made.
	AcceptFunc(then func(Conn, error))
	// Reject makes the application's connect() fail: with ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, or EACCES for what
	// is administratively prohibited.
	Reject(errno syscall.Errno)
	// Drop leaves the flow unanswered.
	Drop()
	// Detach says that the flow continues after Handle, or AcceptFunc's then, has returned, until Done.
	Detach()
	Done()
	// Go runs work as a go statement would, at less cost.
	Go(work func())
	// Turn waits for the flow's turn to wake or to end when many flows do so at once.
	Turn()
}

// Names decides which rule applies to a flow. *rules.Names is one.
type Names interface {
	Decide(dst netip.AddrPort) rules.Decision
	// Others returns the other addresses of name that are of addr's family.
	Others(name string, addr netip.Addr) []netip.Addr
	// Hold keeps what is known about addr until release is called.
	Hold(addr netip.Addr) (release func())
}

// Dialer connects to dst. pin is the source to bind. If any address will do, pin's address is unspecified; the zero
// AddrPort means any source. The error keeps the errno; an errno of bind is inside an os.SyscallError that says so.
type Dialer interface {
	Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error)
}

// Config configures a Proxy. Names, Dialer and Log are required.
type Config struct {
	Names  Names
	Dialer Dialer
	Log    *slog.Logger

	// DialTimeout bounds each dial; 0 means DefaultDialTimeout.
	DialTimeout time.Duration
	// Direct reports whether to dial a flow for which there is no rule, from any port. If not, the flow is refused.
	// Nil refuses all of them.
	Direct func(dst netip.AddrPort) bool
	// Apart says that flows come from another network namespace, so that none of them can be a captured dial of our
	// own.
	Apart bool
	// Behind reports whether a source address belongs to another host, behind this one. Nil means that none does.
	Behind func(src netip.Addr) bool
	// Forbid says why flows from hosts behind this one may not be led to an address; nil if they may. It is called
	// for each address before it is dialed.
	Forbid func(dst netip.AddrPort) error
	// Wrap is given each upstream connection, with the flow's source, and returns what the flow reads and writes
	// instead, for example a connection that inspects DNS answers. May be nil.
	Wrap func(src, dst netip.AddrPort, c Conn) Conn
	// Quiet is called when many flows have ended, fallen asleep or begun, and no longer do: it is worthwhile to return
	// memory to the system. May be nil.
	Quiet func()
	// Share is called when there is a change in how many bytes netstack may keep, on the way up and down, of a flow
	// accepted from now on. The numbers are small while very many flows are awake. When they no longer are, the
	// numbers are 0, which means no bound. Share must not block. May be nil.
	Share func(up, down int)
	// Busy is called when more than a few flows move many bytes at a time, and when they no longer do. It must not
	// block. May be nil.
	Busy func(many bool)
	// Yield is called between any two writes of a flow that moves many bytes. It lets others run for which the
	// network has news. May be nil.
	Yield func()
	// GiveWay is the same for whatever looks at all flows: that is no flow's business and may take long. May be nil.
	GiveWay func()
}

// DefaultDialTimeout is how long an upstream may take to answer.
const DefaultDialTimeout = 30 * time.Second

// Stats are counters since the start.
type Stats struct {
	Live   int    // flows in any stage now
	Asleep int    // of these, the ones without a goroutine
	Ended  uint64 // flows that were spliced
	Failed uint64 // flows that were not
}

// Proxy carries flows. All its methods may be called from any goroutine.
type Proxy struct {
	cfg    Config
	leases *lease.Table
	dials  dials
	crowd  *crowd
	probes probes

	natLooks probes
	failures failures
	rest     rest
	watch    watch
	rescues  rescues
	looks    looks

	tallies  tallies
	throttle throttle

	ended  atomic.Uint64
	failed [kinds]atomic.Uint64

	mu       sync.Mutex
	live     map[*live]struct{}
	up, down uint64 // bytes of flows that have ended
	draining bool
}

// New returns a proxy without flows. It starts nothing.
func New(c Config) *Proxy {
	if c.DialTimeout == 0 {
		c.DialTimeout = DefaultDialTimeout
	}
	if c.Direct == nil {
		c.Direct = func(netip.AddrPort) bool { return false }
	}
	if c.Behind == nil {
		c.Behind = func(netip.Addr) bool { return false }
	}
	if c.Forbid == nil {
		c.Forbid = func(netip.AddrPort) error { return nil }
	}
	if c.Yield == nil {
		c.Yield = func() {}
	}
	if c.GiveWay == nil {
		c.GiveWay = func() {}
	}
	if c.Wrap == nil {
		c.Wrap = func(_, _ netip.AddrPort, c Conn) Conn { return c }
	}
	return &Proxy{cfg: c, leases: lease.NewTable(), crowd: newCrowd(maxPerRule, maxPerSource), rest: rest{quiet: c.Quiet, share: c.Share, busy: c.Busy}, live: make(map[*live]struct{})}
}

// Handle carries one flow from its decision on. It returns when the flow has failed, or when the flow has been
// answered and no longer needs the goroutine. ctx ends when the application gives up before it is answered, or when
// everything stops. It does not end open flows: their ends or Drain do.
func (p *Proxy) Handle(ctx context.Context, f Flow) {
	given := &lazy{Context: ctx}
	l := newLive(p, f, given.cancel)
	if !p.add(l) {
		given.cancel()
		f.Drop()
		return
	}
	l.begin(given)
	given.cancel()
}

func (p *Proxy) add(l *live) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.live[l] = struct{}{}
	return true
}

func (p *Proxy) remove(l *live) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, l)
	up, down := l.up.bytes.Load(), l.down.bytes.Load()
	p.up += up
	p.down += down
	l.tally.up += up
	l.tally.down += down
}

// Stats returns the counters.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Live: len(p.live), Asleep: p.rest.asleep(), Ended: p.ended.Load()}
	for kind := range p.failed {
		s.Failed += p.failed[kind].Load()
	}
	return s
}
