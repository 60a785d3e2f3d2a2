package main

import (
	"fmt"
	"slices"
	"strings"
)

// page returns the figures in Markdown. The text refers to the picture by that name.
func (s *samples) page(picture string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# pinproxy beside others

Written by `+"`make bench`"+`, which measures this again: in network namespaces of its own, all systems in turns, %s, %s
each time, in an order that is drawn anew for each and when the machine is idle. %s

Application, system and server share the processors, so that a system also pays for what it makes the other
two do. Figures of one run can be compared with each other; those of different runs, or machines, can't. Congestion control is
reno, MTU 1500 with segmentation offload, as virtual Ethernet has it.

![Throughput, connections a second, round trips and memory, as bars](%s)

`, rounds(s.rounds()), s.Window, s.Machine, picture)

	for _, block := range s.blocks() {
		fmt.Fprintf(&b, "%s\n\n|", block.text)
		for _, k := range s.shown() {
			fmt.Fprintf(&b, " | %s", emphasized(k))
		}
		fmt.Fprintf(&b, " |\n| ---%s |\n", strings.Repeat(" | ---:", len(s.shown())))
		for _, m := range s.columns() {
			fmt.Fprintf(&b, "| %s, %s", m.title, m.unit)
			for _, k := range s.shown() {
				fmt.Fprintf(&b, " | %s", block.cell(k, m))
			}
			fmt.Fprint(&b, " |\n")
		}
		fmt.Fprint(&b, "\n")
	}

	if s.measured("busyup1") {
		fmt.Fprint(&b, "What is left of the throughput of one busy flow when there are more, in the same round.\n\n")
		fmt.Fprint(&b, "| | up, 10 | 100 | 1,000 | down, 10 | 100 | 1,000 |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
		for _, k := range s.ranking(measureOf("busyup1")) {
			fmt.Fprintf(&b, "| %s", emphasized(k))
			for _, way := range []string{"busyup", "busydown"} {
				for _, n := range []string{"10", "100", "1000"} {
					fmt.Fprintf(&b, " | %s", ratio(s.held(k.key, way+n, way+"1")))
				}
			}
			fmt.Fprint(&b, " |\n")
		}
		fmt.Fprint(&b, "\n")
	}

	fmt.Fprint(&b, "## What went wrong\n\nConnections that failed, and systems that could not be measured, in all rounds.\n\n")
	for _, f := range s.failures() {
		fmt.Fprintf(&b, "- %s\n", f)
	}
	if len(s.failures()) == 0 {
		fmt.Fprint(&b, "Nothing.\n")
	}

	fmt.Fprint(&b, "\n## The systems\n\n")
	for _, k := range s.shown() {
		name := k.title
		if v := s.Versions[k.key]; v != "" {
			name += " " + v
		}
		fmt.Fprintf(&b, "- **%s**: %s.\n", name, k.how)
	}
	fmt.Fprintf(&b, `
## What is measured

- **Throughput**: payload that arrives, counted by the receiver once the flows have run for a while. CPU is the system's
  own user and system time for all of the run, from /proc.
- **Connections**: connect, %d bytes there and back, close; the client closes first. 16 workers at once, or 1. Eight
  destination addresses, in turns, where the system is not a listener.
- **Round trip**: %d bytes there and back over one connection, one after the other.
- **Beside bulk data**: the same while eight other flows send, or receive, as much as they can. The ends of those alone keep two processors
  busy, so much of it is the kernel's scheduler (direct).
- **One port**: connections one after the other through one source port to one address and port. Each has to get the
  4-tuple from the one before, which is in TIME_WAIT because the client has closed first; without TCP timestamps on the
  server's side the kernel gives it back after a minute only. A connect that gets no answer is given up after %s.
- **Behind a gateway**: throughput of a host that the system's host forwards for. Its link has an MTU of 1500 and the offloads
  of virtual Ethernet; whatever it sends to the server is routed into the system's device, as ordinary forwarding is (direct).
  pinproxy is told `+"`--gateway`"+` of that link. pasta, slirp4netns and `+"`pinproxy -- CMD`"+` serve one namespace, socat and haproxy are
  listeners, which a host behind would have to know.
- **Busy flows**: throughput of all of them together, at a time and through one process. They are opened first. The load has a thread for each
  processor here, not for each flow, and keeps no more than %d MiB waiting to be sent if they are many; 1,000 flows get 7 times as
  long to warm up, and are counted for 3 times as long. In every other round, and of few systems, as it takes long.
- **Memory**: resident set, beside that before, for each of %s idle flows, in a process that has just been started; 500
  flows where one costs hundreds of kilobytes.

`+"`make bench BENCHFLAGS=--help`"+` names the flags for less, or more.
`, messageSize, pingSize, socketPatience, pushQueue>>20, count(float64(s.Flows)))
	return b.String()
}

func emphasized(k kind) string {
	if slices.Contains([]string{keyPinproxy, keyCommand}, k.key) {
		return "**" + k.title + "**"
	}
	return k.title
}
