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

`+"`make bench`"+` writes this page and measures everything again, in network namespaces of its own. All systems take turns: %s, %s
a turn, in an order that is drawn anew each time. A turn begins once the machine is idle. %s

Application, system and server share the processors, so a system also pays for the work that it causes in the other
two. Figures of one run can be compared with each other; figures of different runs or machines cannot. Congestion control is
reno. The MTU is 1500 with segmentation offload, as on virtual Ethernet.

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
		fmt.Fprint(&b, "Throughput of 10, 100 and 1,000 busy flows relative to that of one, in the same round.\n\n")
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
  own user and system time over the whole run, from /proc.
- **Connections**: connect, %d bytes there and back, close; the client closes first. 16 workers at a time, or one. They use
  eight destination addresses in turn, unless the system is a listener.
- **Round trip**: %d bytes there and back over one connection, one round trip after the other.
- **Beside bulk data**: the same while eight other flows send, or receive, as much as they can. The ends of those flows alone keep
  two processors busy, so much of the time is the kernel's scheduler (see direct).
- **One port**: connections one after the other through one source port to one address and port. Each has to get the
  4-tuple from the one before, which is in TIME_WAIT because the client closed first. Without TCP timestamps on the
  server's side the kernel gives it back only after a minute. A connect that gets no answer is given up after %s.
- **Behind a gateway**: throughput of a host for which the system's host forwards. Its link has an MTU of 1500 and the offloads
  of virtual Ethernet. Whatever it sends to the server is routed into the system's device; direct is ordinary forwarding.
  pinproxy has `+"`--gateway`"+` with that link. pasta, slirp4netns and `+"`pinproxy -- CMD`"+` serve one namespace only, and socat and
  haproxy are listeners, which a host behind would have to know.
- **Busy flows**: throughput of all of them together, at the same time and through one process. They are opened first. Here the
  load has a thread for each processor, not for each flow, and keeps no more than %d MiB waiting to be sent if there are many
  flows. 100 flows get 9 times as long to warm up, and 1,000 28 times, and these are counted for 3 times as long. This takes
  long, so it is measured in every other round only, and for few systems.
- **Memory**: growth of the resident set for each of %s idle flows, in a process that has just been started; 500
  flows where one costs hundreds of kilobytes.

`+"`make bench BENCHFLAGS=--help`"+` lists the flags that measure less, or more.
`, messageSize, pingSize, socketPatience, pushQueue>>20, count(float64(s.Flows)))
	return b.String()
}

func emphasized(k kind) string {
	if slices.Contains([]string{keyPinproxy, keyCommand}, k.key) {
		return "**" + k.title + "**"
	}
	return k.title
}
