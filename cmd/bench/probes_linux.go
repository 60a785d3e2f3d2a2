package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// result is a figure found by a probe.
type result struct {
	measure string
	value   float64
	failed  int
}

// probe measures one system for a while.
type probe struct {
	name    string
	group   string   // for --only
	results []string // measures it may give
	systems []string // that it can measure; all if empty
	without []string // that it can't measure
	plain   bool     // the server does not use TCP timestamps
	once    bool     // one time per run, with the system started afresh
	every   int      // how many rounds apart, if it takes long; in every round if 0
	needs   func(o options) time.Duration
	measure func(ctx context.Context, s *system, o options) ([]result, error)
}

// warm is how long bytes and messages flow before they count.
func warm(o options) time.Duration { return o.window/4 + 50*time.Millisecond }

func oneWindow(o options) time.Duration  { return o.window + 20*time.Millisecond }
func warmWindow(o options) time.Duration { return o.window + warm(o) + 70*time.Millisecond }

// settle is how long flows are idle before memory is looked at, so that garbage has been collected and stacks have
// shrunk. It is longer if there are more flows than usual.
func settle(o options) time.Duration {
	return min(3*time.Second, 8*o.window) + time.Duration(max(0, o.flows-5000))*300*time.Microsecond
}

func idleTime(o options) time.Duration {
	return startTime + settle(o) + settle(o)/4 + time.Duration(o.flows)*300*time.Microsecond
}

// startTime is roughly how long a system takes to start.
const startTime = 500 * time.Millisecond

// oneFlowOnly are systems that are measured only with one flow of bulk data.
var (
	pinning     = []string{keyDirect, keyPinproxy, keyCommand, "socat", "haproxy", "nft"}
	oneFlowOnly = []string{keyTUN}
	notMany     = []string{keyTUN, keyMany}
	crowded     = []string{keyDirect, keyPinproxy, "sing-box-system"}
	gateways    = []string{keyDirect, keyPinproxy, "sing-box-gvisor", "sing-box-system", "tun2socks"}
)

// probes, in the order in which they take turns.
var probes = []probe{
	{name: "up, 1 flow", group: "throughput", results: []string{"up1", "cpuup"}, without: []string{keyMany}, needs: warmWindow, measure: up(onHost, 1, "up1", "cpuup")},
	{name: "down, 1 flow", group: "throughput", results: []string{"down1", "cpudown"}, without: []string{keyMany}, needs: warmWindow, measure: down(onHost, 1, "down1", "cpudown")},
	{name: "up, 8 flows", group: "throughput", results: []string{"up8"}, without: notMany, needs: warmWindow, measure: up(onHost, 8, "up8", "")},
	{name: "down, 8 flows", group: "throughput", results: []string{"down8"}, without: notMany, needs: warmWindow, measure: down(onHost, 8, "down8", "")},
	{name: "connections, 1 worker", group: "connections", results: []string{"conn1"}, without: oneFlowOnly, needs: oneWindow, measure: connections(1, "conn1")},
	{name: "connections, 16 workers", group: "connections", results: []string{"conn16"}, without: oneFlowOnly, needs: oneWindow, measure: connections(16, "conn16")},
	{name: "round trips", group: "latency", results: []string{"p50", "p99"}, without: oneFlowOnly, needs: warmWindow, measure: roundTrips},
	{name: "round trips beside 8 uploads", group: "beside", results: []string{"p50up8"}, without: notMany, needs: warmWindow, measure: roundTripsBeside("send", portSink, "p50up8")},
	{name: "round trips beside 8 downloads", group: "beside", results: []string{"p50down8"}, without: notMany, needs: warmWindow, measure: roundTripsBeside("receive", portSource, "p50down8")},
	{name: "one pinned port", group: "pinned", results: []string{"pin"}, systems: pinning, needs: oneWindow, measure: pinned(portPinned, "pin")},
	{name: "one pinned port, no timestamps", group: "pinned", results: []string{"pinplain"}, systems: pinning, plain: true, needs: oneWindow, measure: pinned(portPlain, "pinplain")},
	{name: "gateway, up, 1 flow", group: "gateway", results: []string{"gwup1"}, systems: gateways, needs: warmWindow, measure: up(behindIt, 1, "gwup1", "")},
	{name: "gateway, down, 1 flow", group: "gateway", results: []string{"gwdown1"}, systems: gateways, needs: warmWindow, measure: down(behindIt, 1, "gwdown1", "")},
	{name: "gateway, up, 8 flows", group: "gateway", results: []string{"gwup8"}, systems: gateways, needs: warmWindow, measure: up(behindIt, 8, "gwup8", "")},
	{name: "gateway, down, 8 flows", group: "gateway", results: []string{"gwdown8"}, systems: gateways, needs: warmWindow, measure: down(behindIt, 8, "gwdown8", "")},
	{name: "1 busy flow, up", group: "flows", every: 2, results: []string{"busyup1"}, systems: crowded, needs: busyTime(1), measure: busy(1, true, "busyup1")},
	{name: "1 busy flow, down", group: "flows", every: 2, results: []string{"busydown1"}, systems: crowded, needs: busyTime(1), measure: busy(1, false, "busydown1")},
	{name: "10 busy flows, up", group: "flows", every: 2, results: []string{"busyup10"}, systems: crowded, needs: busyTime(10), measure: busy(10, true, "busyup10")},
	{name: "10 busy flows, down", group: "flows", every: 2, results: []string{"busydown10"}, systems: crowded, needs: busyTime(10), measure: busy(10, false, "busydown10")},
	{name: "100 busy flows, up", group: "flows", every: 2, results: []string{"busyup100"}, systems: crowded, needs: busyTime(100), measure: busy(100, true, "busyup100")},
	{name: "100 busy flows, down", group: "flows", every: 2, results: []string{"busydown100"}, systems: crowded, needs: busyTime(100), measure: busy(100, false, "busydown100")},
	{name: "1,000 busy flows, up", group: "flows", every: 2, results: []string{"busyup1000"}, systems: crowded, needs: busyTime(1000), measure: busy(1000, true, "busyup1000")},
	{name: "1,000 busy flows, down", group: "flows", every: 2, results: []string{"busydown1000"}, systems: crowded, needs: busyTime(1000), measure: busy(1000, false, "busydown1000")},
	{name: "idle flows", group: "memory", results: []string{"memory"}, without: []string{keyDirect, keyTUN, keyMany, "nft"}, once: true, needs: idleTime, measure: idle},
}

// fits reports whether the probe can measure the system.
func (p *probe) fits(k kind) bool {
	return !slices.Contains(p.without, k.key) && (len(p.systems) == 0 || slices.Contains(p.systems, k.key))
}

// gateway reports whether the probe measures systems as gateways.
func (p *probe) gateway() bool { return p.group == "gateway" }

// measures reports whether the probe is for a system, as that has been set up.
func (p *probe) measures(s *system) bool { return p.fits(s.kind) && p.gateway() == (s.inner != nil) }

// origin is where flows begin.
type origin func(s *system) (*agent, error)

func onHost(s *system) (*agent, error)   { return s.client, nil }
func behindIt(s *system) (*agent, error) { return s.behind, s.unfit }

// up has n flows send, and the server count.
func up(from origin, n int, measure, cpu string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		client, err := from(s)
		if err != nil {
			return nil, err
		}
		counted := make(chan error, 1)
		var got report
		go func() {
			var err error
			got, err = s.net.server.do(ctx, task{Do: "count", Warm: warm(o), Time: o.window})
			counted <- err
		}()
		before := s.cpu()
		sent, err := client.do(ctx, task{Do: "send", To: s.to(portSink), N: n, Warm: warm(o), Time: o.window + 50*time.Millisecond})
		used := s.cpu() - before
		if serverErr := <-counted; serverErr != nil {
			return nil, fmt.Errorf("%w: the server: %w", errServer, serverErr)
		}
		if err != nil {
			return nil, err
		}
		return moved(measure, cpu, got, sent.All, used), nil
	}
}

// down has n flows receive, and the client count.
func down(from origin, n int, measure, cpu string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		client, err := from(s)
		if err != nil {
			return nil, err
		}
		before := s.cpu()
		got, err := client.do(ctx, task{Do: "receive", To: s.to(portSource), N: n, Warm: warm(o), Time: o.window})
		if err != nil {
			return nil, err
		}
		return moved(measure, cpu, got, got.All, s.cpu()-before), nil
	}
}

// moved returns the results from r and from the processor time used for all bytes. cpu is empty if nobody asks for
// it.
func moved(measure, cpu string, r report, all int64, used time.Duration) []result {
	list := []result{{measure: measure, value: 8 * float64(r.Bytes) / float64(r.Took.Nanoseconds())}}
	if cpu != "" && used > 0 && all > 0 {
		list = append(list, result{measure: cpu, value: used.Seconds() / (float64(all) / 1e9)})
	}
	return list
}

// connections has workers make short connections to all addresses of the server.
func connections(workers int, measure string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		r, err := s.client.do(ctx, task{Do: "connect", To: s.to(portShort), N: workers, Time: o.window})
		return []result{{measure, float64(r.OK) / r.Took.Seconds(), r.Failed}}, err
	}
}

// pinned has one worker make short connections through one source port to one address. Without a proxy in between,
// the worker binds the port itself.
func pinned(port uint16, measure string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		t := task{Do: "connect", To: s.to(port)[:1], N: 1, Time: o.window}
		if s.key == keyDirect {
			t.From = pinnedTo[port]
		}
		r, err := s.client.do(ctx, t)
		return []result{{measure, float64(r.OK) / r.Took.Seconds(), r.Failed}}, err
	}
}

func roundTrips(ctx context.Context, s *system, o options) ([]result, error) {
	r, err := s.client.do(ctx, task{Do: "ping", To: s.to(portEcho), Warm: warm(o), Time: o.window})
	if err != nil {
		return nil, err
	}
	return []result{
		{measure: "p50", value: float64(r.P50.Nanoseconds()) / 1e3},
		{measure: "p99", value: float64(r.P99.Nanoseconds()) / 1e3},
	}, nil
}

// roundTripsBeside measures the round trips of a flow while eight others move as many bytes as they can.
func roundTripsBeside(do string, port uint16, measure string) func(context.Context, *system, options) ([]result, error) {
	return func(ctx context.Context, s *system, o options) ([]result, error) {
		// They begin together, and the other flows end last.
		others := task{Do: do, To: s.to(port), N: 8, Warm: warm(o), Time: o.window + 50*time.Millisecond}
		r, err := s.client.do(ctx, task{Do: "ping", To: s.to(portEcho), Warm: warm(o), Time: o.window, Beside: &others})
		if err != nil {
			return nil, err
		}
		return []result{{measure: measure, value: float64(r.P50.Nanoseconds()) / 1e3}}, nil
	}
}

// idle opens flows and measures how they change the system's memory.
func idle(ctx context.Context, s *system, o options) ([]result, error) {
	n := o.flows
	if slices.Contains([]string{"socat", "slirp4netns"}, s.key) {
		n = min(n, 500) // these take hundreds of kilobytes each
	}
	time.Sleep(settle(o) / 4)
	before := s.resident()
	defer s.release(ctx)
	stand, err := s.open(ctx, n)
	if err != nil {
		return nil, err
	}
	time.Sleep(settle(o))
	return []result{{"memory", float64(s.resident()-before) / float64(stand), n - stand}}, nil
}

// errServer says that the server, not the system, has failed.
var errServer = errors.New("the other end has failed")

// cpu returns the processor time that the system has used.
func (s *system) cpu() (sum time.Duration) {
	for _, p := range s.proxy {
		if t, err := cpuTime(p.Pid(), s.descendants); err == nil { // otherwise it has ended, which its client will see
			sum += t
		}
	}
	return sum
}

// resident returns the memory that the system occupies.
func (s *system) resident() (sum int64) {
	for _, p := range s.proxy {
		if n, err := residentSet(p.Pid(), s.descendants); err == nil {
			sum += n
		}
	}
	return sum
}

// descriptors returns how many descriptors a process may have.
func descriptors() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// allowDescriptors raises the descriptor limit of this process, and of those it starts, as far as allowed. With
// CAP_SYS_RESOURCE it can exceed the hard limit.
func allowDescriptors() error {
	l := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = min(l.Max, 1<<20)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
}

// first returns the first line of an error.
func first(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
