// Command pinproxy pins the source ports of this host's connections, or of one command's, by rule.
//
//	pinproxy --rule 'google.co.uk:443=63999'
//	pinproxy --rule 'google.co.uk:443=63999' -- curl https://google.co.uk/
//
// See docs/pinproxy.8. The files: flags.go is the command line; words.go has everything that is said to the user; the
// packages meet in run.go for a whole host and in command.go for one command, and what both have in common is in
// engine.go; learn.go leads from a DNS answer to a route; reload.go rereads the rules files. drop.go gives up
// privileges, and namer_linux.go keeps what is left of them. control.go is where package monitor's socket is, http.go
// where its page is, status.go and watch.go print what it tells; check.go prints what package check finds out.
// dryrun.go prints what would be changed on this host. logging.go is the log, and patient.go keeps it from holding
// anything up. answers.go tells of servers that are in the rules' way. cleanup.go, notify.go and cpus.go are what their
// names say.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"

	"pinproxy/netstack/netns"
)

func main() {
	// A crash, and SIGABRT from a service manager's watchdog, end us by a signal. Go's usual exit status for them
	// would be that of a usage error, after which nobody would start us again.
	debug.SetTraceback("crash")
	netns.Main() // does not return in the process that becomes a command
	namerMain()  // nor in the one that names the owners of sockets
	shareCPUs(false)
	os.Exit(run(signals, os.Args[1:], os.Stdout, os.Stderr))
}

// signals returns two contexts: one ends at the first signal to end, the other at the second. A third signal ends
// the process as if we did not listen.
func signals() (stop, now context.Context) {
	stop, first := context.WithCancel(context.Background())
	now, second := context.WithCancel(context.Background())
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-c
		first()
		<-c
		second()
		signal.Reset()
	}()
	return stop, now
}

// run is the whole program. It returns the exit status. It ends in order when the first context of signals ends, and
// at once when the second ends. A command's own signals go to the command: run does not listen to them then.
func run(signals func() (stop, now context.Context), args []string, stdout, stderr io.Writer) int {
	say := words{stderr}
	h, err := takeOver()
	if err != nil {
		return say.error(err)
	}
	o, err := parseArgs(args, h.text)
	if err != nil {
		status := say.error(err)
		if o.command == "" && slices.Contains(args, "--") {
			return exitNotRun
		}
		return status
	}
	if len(o.argv) > 0 {
		status, err := runCommand(o, stderr)
		if err != nil {
			return say.commandError(err)
		}
		return status
	}
	if o.serves() {
		if err := h.drop(o); err != nil {
			return say.error(err)
		}
	}
	stop, now := signals()
	switch {
	case o.help:
		err = printText(stdout, usage)
	case o.version:
		err = printText(stdout, version())
	case o.command == "cleanup":
		err = cleanup(stop, stdout, stderr)
	case o.command == "status":
		err = status(stop, o, stdout)
	case o.command == "check":
		var exit int
		if exit, err = checkTarget(stop, o, stdout); err == nil {
			return exit
		}
	case o.dryRun:
		err = dryRun(stop, o, stdout)
	default:
		err = serve(stop, now, o, h, stderr)
	}
	if err != nil {
		return say.error(err)
	}
	return exitOK
}
