// Command bench measures pinproxy, in minutes and on any Linux machine, and compares it with no proxy at all and
// with other programs that carry TCP from an application to the network:
//
//	bench [flags] PINPROXY
//
// It makes a network of its own out of namespaces and needs only the given pinproxy binary. It also measures those
// of sing-box, tun2socks, pasta, slirp4netns, socat, haproxy and nft that are on the PATH. All systems take turns
// within each round, so that other work on the machine affects them all alike. The order of the turns is drawn anew
// each time. A turn begins when the machine is idle, so that no system pays for the leftover work of the one before.
//
// # How it is built
//
//	┌ client 1 ──────────┐ 198.51.100.0/30
//	│ load    (direct)   ├────────────┐  ┌ server ───────────┐
//	└────────────────────┘            │  │                   │
//	┌ client 2 ──────────┐            ├──┤ server            │
//	│ load ─▶ pinproxy   ├────────────┤  │ 203.0.113.1 to .9 │
//	└────────────────────┘            │  │                   │
//	┌ client 3 ──────────┐            │  └───────────────────┘
//	│ load ─▶ sing-box   ├────────────┘
//	└────────────────────┘ …
//
// A system that can be a gateway is there a second time, with another host behind its own, and a load on that host:
//
//	┌ behind ──┐ 100.64.0.0/10  ┌ client 2 ──────┐
//	│ load     ├────────────────┤ ─▶ pinproxy    ├── …
//	└──────────┘                └────────────────┘
//
// Every system has a client host of its own, and all of them are up from beginning to end, so that taking turns
// costs nothing. Load and server are this binary started again as `bench agent`. It reads tasks from its standard
// input, one JSON object a line, and answers each with a report. So the load generator is the same whether it is
// started next to a proxy, by pinproxy as its command, or in a namespace that pasta is attached to.
//
// The sockets of both ends block, and data is counted where it arrives.
//
// What is measured is in probes_linux.go. How each system is started is in systems_linux.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// options are the command-line options.
type options struct {
	pinproxy string
	rounds   int
	window   time.Duration
	flows    int
	only     []string
	systems  []string
	samples  string
	page     string
}

const usage = `usage: bench [flags] PINPROXY

Measures PINPROXY, no proxy, and what it finds on the PATH of sing-box, tun2socks, pasta, slirp4netns, socat,
haproxy and nft, in turns, in network namespaces of its own. It begins by saying how long that takes.

`

// run is the whole program. It returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 1 {
		switch args[0] {
		case "agent":
			return agentMain(stdin, stdout, stderr)
		case "tun":
			return tunMain(stderr)
		}
	}
	o, err := parseArgs(args, stderr)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: error: %v\n", err)
		return 2
	}
	if err := bench(ctx, o, stdout, stderr); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(stderr, "bench: error: %v\n", err)
		return 1
	}
	return 0
}

func parseArgs(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.SortFlags = false
	fs.IntVar(&o.rounds, "rounds", 5, "how often everything is measured; memory once")
	fs.DurationVar(&o.window, "time", 400*time.Millisecond, "how long each measurement takes")
	fs.IntVar(&o.flows, "flows", 5000, "idle flows that memory is measured with")
	fs.StringSliceVar(&o.only, "only", nil, "some of: "+strings.Join(groups(), ","))
	fs.StringSliceVar(&o.systems, "systems", nil, "some of: "+strings.Join(systemKeys(), ","))
	fs.StringVar(&o.samples, "samples", "", "`file` with samples of earlier runs, to which these are added")
	fs.StringVar(&o.page, "page", "", "Markdown `file` to write when everything has been measured; its picture beside it ends in .svg")
	fs.Usage = func() { fmt.Fprint(stderr, usage, fs.FlagUsages()) }
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	for _, l := range []struct {
		flag         string
		given, known []string
	}{{"only", o.only, groups()}, {"systems", o.systems, systemKeys()}} {
		for _, g := range l.given {
			if !slices.Contains(l.known, g) {
				return o, fmt.Errorf("--%s %s: give some of %s", l.flag, g, strings.Join(l.known, ","))
			}
		}
	}
	switch {
	case fs.NArg() != 1:
		return o, errors.New("give the pinproxy to be measured, and flags; --help names them")
	case o.rounds < 1 || o.rounds > 1000:
		return o, fmt.Errorf("--rounds %d: give 1 to 1000", o.rounds)
	case o.window < time.Millisecond || o.window > time.Minute:
		return o, fmt.Errorf("--time %s: give 1ms to 1m", o.window)
	case o.flows < 1 || o.flows > 50_000:
		return o, fmt.Errorf("--flows %d: give 1 to 50000", o.flows)
	}
	o.pinproxy = fs.Arg(0)
	return o, nil
}
