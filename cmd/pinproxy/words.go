package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/netstack/link"
	"pinproxy/netstack/netns"
	"pinproxy/rules"
)

// This file has everything that pinproxy says to its user outside the log.
//
// An error is one line, "pinproxy: error: …": what was being done, to what, and why it failed, in lower case and
// without a full stop. If something can be done, "pinproxy: hint: …" follows with the command to type, or what to
// do. A hint never repeats the error. Nothing else is printed unless it was asked for.

// Exit status.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNotRun  = 125 // with a command: we have failed before it began; same as env(1)'s and timeout(1)'s
	exitNoExec  = 126 // the command exists but can't be executed; same as a shell's
	exitUnknown = 127 // the command, or its interpreter, does not exist
)

const usage = `pinproxy pins the source ports of TCP connections by rule, for any program.

Usage:
  pinproxy --rule RULE... [flags]            pin for the whole host, until stopped
  pinproxy --rule RULE... [flags] -- CMD...  pin for one command, without privileges
  pinproxy check [--rule RULE]... [--connect] [--json] HOST:PORT
                                             which rule, which port, and what stands in the way
  pinproxy status [--json] [--watch]         rules, ports, flows and failures of the running pinproxy
  pinproxy cleanup                           undo what a killed pinproxy left behind

Rules, destination=source:
  google.co.uk:443=63999                     one name, one port
  *.bank.example:443,8443=63990-63999        all names below one, a range of ports
  10.20.0.0/16:*=192.0.2.10:20000-20999      a network, any port; the source address too
  '[2001:db8::/32]:22=1022 busy=wait:10s'    what to do when every port is taken: wait[:D],
                                             reclaim[:D], other-address, any, fail
The most specific rule wins, whatever the order.

Flags:
  -r, --rule RULE          add a rule; repeatable
  -f, --rules FILE         read rules from FILE, one per line; '#' starts a comment;
                           repeatable; reread on SIGHUP, all or nothing
      --tun NAME           name of the TUN device (default pin0)
      --offload auto|off   segmentation and checksum offload on the device (default auto)
      --dial-timeout D     how long a destination may take to answer (default 30s)
      --strict             also capture sockets bound to a source address; this breaks
                           connections that are open when pinproxy starts
      --gateway IFACE      also pin what the hosts behind this device (a LAN, a bridge,
                           a tunnel) send through this host; repeatable
      --host-loopback ADDR with CMD: the address at which it reaches this host's
                           loopback; repeatable, once each for IPv4 and IPv6
      --dry-run            print each change to the host as a command, and change nothing
      --log-level LEVEL    debug, info, warn or error (default info; with CMD, warn)
      --log-format FORMAT  text or json (default text)
      --socket PATH        control socket, which check and status query
                           (default /run/pinproxy/pinproxy.sock)
      --socket-group GROUP group allowed to query it, besides the same user and root
      --user NAME          user to switch to, as root, once the device is made
                           (default pinproxy if that user exists, else nobody)
      --http ADDRESS:PORT  serve a live page, /metrics and /healthz; ADDRESS defaults
                           to 127.0.0.1
      --connect            check: also connect, from the pin and as programs do, sending nothing
      --json               check, status: print JSON
      --watch              status: refresh every second
      --version            print the version
  -h, --help               print this help

Example: a partner's firewall lets you in from source port 63999 only.
  $ sudo pinproxy --rule 'partner.example:443=63999' &
  $ curl https://partner.example/          # any program, as usual
  $ pinproxy check partner.example:443     # exit status 0: it leaves from its pin
The same for one program, as any user:
  $ pinproxy --rule 'partner.example:443=63999' -- curl https://partner.example/

Exit status: 0 success, 1 failure, 2 bad usage. With CMD it is CMD's own: 128+n for
a signal, 126 if it cannot be executed, 127 if it is not found, 125 if pinproxy
itself failed before. Manual: pinproxy(8).
`

// printText writes text that the user asked for.
func printText(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// printJSON writes what the user asked for, in one line if indent is "".
func printJSON(w io.Writer, what any, indent string) error {
	e := json.NewEncoder(w)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	if err := e.Encode(what); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// words speaks to the user.
type words struct{ w io.Writer }

// commandError says why a command was not run, and returns the exit status that env(1) would give: 1 and 2 are the
// command's own.
func (s words) commandError(err error) int {
	var ended *netns.EndedError
	var exec *netns.ExecError
	if errors.As(err, &ended) && ended.Status > 128 {
		return ended.Status // somebody ended it, and knows
	}
	s.error(err)
	switch {
	case errors.Is(err, netns.ErrNotFound), errors.As(err, &exec) && errors.Is(err, fs.ErrNotExist):
		return exitUnknown
	case errors.As(err, &exec):
		return exitNoExec
	}
	return exitNotRun
}

// error says what went wrong, and returns the exit status.
func (s words) error(err error) int {
	if syntax, ok := errors.AsType[*rules.SyntaxError](err); ok {
		fmt.Fprintf(s.w, "pinproxy: error: %s\n%s\n", syntax.Error(), indent(syntax.Caret()))
		if syntax.Hint != "" {
			s.hint(ruleHint(syntax))
		}
		return exitUsage
	}
	for line := range strings.Lines(err.Error()) { // joined errors; a control socket may have said something
		fmt.Fprintf(s.w, "pinproxy: error: %s\n", terminal.Printable(strings.TrimSuffix(line, "\n")))
	}
	if hint := hintFor(err); hint != "" {
		s.hint(hint)
	}
	if errors.As(err, new(*usageError)) || errors.As(err, new(*rules.ConflictError)) {
		return exitUsage
	}
	return exitFailed
}

func (s words) hint(text string) { fmt.Fprintf(s.w, "pinproxy: hint: %s\n", text) }

// ruleHint returns the corrected rule as it would be typed where it was given: in a file or on the command line.
func ruleHint(e *rules.SyntaxError) string {
	if e.Source != "" {
		return e.Hint
	}
	return "pinproxy --rule " + terminal.Quote(e.Hint)
}

// hintFor returns the hint for failures that have one.
func hintFor(err error) string {
	var own interface {
		error
		Hint() string
	}
	var held *host.HeldError
	var path *fs.PathError
	var forbidden *netns.ForbiddenError
	var demand *host.DemandError
	var exec *netns.ExecError
	switch {
	case errors.As(err, &own):
		return own.Hint()
	case errors.As(err, &demand):
		return demand.Hint
	case errors.As(err, &forbidden):
		return forbiddenHint(forbidden.By)
	case errors.Is(err, netns.ErrDevice):
		return "sudo chmod 0666 /dev/net/tun, as distributions do; in a container, pass the device in: --device /dev/net/tun"
	case errors.As(err, &exec), errors.Is(err, netns.ErrNotFound):
	case errors.As(err, &held) && held.PID != 0 && monitor.IsEnding(held.PID):
		return "it is ending: try again in a few seconds"
	case errors.As(err, &held) && held.PID != 0:
		return fmt.Sprintf("stop it with `kill %d`, or give that one this rule as well", held.PID)
	case errors.Is(err, link.ErrNameTaken):
		return "choose another name: pinproxy --tun pin1 …"
	case errors.Is(err, link.ErrNoTUN):
		return "sudo modprobe tun; in a container, pass the device in: --device /dev/net/tun"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "raise the limit of open files: ulimit -n, or LimitNOFILE= in a unit"
	case errors.As(err, &path): // a file of ours: the error says enough
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EPERM):
		return privilegeHint(os.Geteuid())
	}
	return ""
}

// privilegeHint returns how to get CAP_NET_ADMIN. In containers root does not have it, and what is added reaches root
// alone.
func privilegeHint(uid int) string {
	if uid == 0 {
		return "root lacks CAP_NET_ADMIN here; in a container, add it: --cap-add NET_ADMIN"
	}
	return "pinproxy needs root, or CAP_NET_ADMIN: sudo pinproxy …; in a container, start it as root (--user 0), with --cap-add NET_ADMIN"
}

// forbiddenHint returns how to be allowed namespaces.
func forbiddenHint(by netns.Ban) string {
	switch by {
	case netns.ByAppArmor:
		return appArmorHint(ownPath(), func(path string) bool { _, err := os.Stat(path); return err == nil })
	case netns.ByClone:
		return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case netns.ByLimit:
		return "sudo sysctl -w user.max_user_namespaces=15000"
	case netns.ByNumber:
		return "end what holds namespaces (lsns -t user, lsns -t net), or raise the limit"
	case netns.BySeccomp:
		return "start the container with --security-opt seccomp=unconfined, where there is AppArmor also apparmor=unconfined, or run pinproxy on its host; in a unit of systemd, with RestrictNamespaces=no"
	case netns.ByRoot:
		return "run it as another user than root; in a container, add the capability: --cap-add SETFCAP"
	case netns.ByProfile:
		return "let the profile allow namespaces, and mounts in them, or take it away: sudo aa-disable " + ownPath() + "; in a container, --security-opt apparmor=unconfined"
	}
	return "run it as root, or without -- for the whole host"
}

// appArmorHint returns how to have Ubuntu's AppArmor let the program at path make user namespaces. The profile that
// comes with pinproxy is for the two places where it is installed.
func appArmorHint(path string, exists func(path string) bool) string {
	const all = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	profile, attach := strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "."), path
	if slices.Contains([]string{"/usr/bin/pinproxy", "/usr/local/bin/pinproxy"}, path) {
		profile, attach = "pinproxy", "/usr/{,local/}bin/pinproxy"
	}
	file := "/etc/apparmor.d/" + profile
	load := "sudo apparmor_parser -r " + file
	switch {
	case !filepath.IsAbs(path) || strings.ContainsFunc(path, needsQuotes):
		return "install it, by `sudo make install` or a package, with its AppArmor profile, or let every program make them: " + all
	case exists(file):
		return load + "; or let every program make them: " + all
	}
	return fmt.Sprintf("give %s a profile: echo 'abi <abi/4.0>, profile %s %s flags=(unconfined) { userns, }' | sudo tee %s && %s; or let every program make them: %s",
		path, profile, attach, file, load, all)
}

// needsQuotes reports whether a character of a path means something to the shell or to AppArmor.
func needsQuotes(r rune) bool {
	return !strings.ContainsRune("/.-_+", r) && !('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
}

// ownPath returns the path of this program's file, for hints.
func ownPath() string {
	if path, err := os.Executable(); err == nil {
		return path
	}
	return "pinproxy"
}

// indent sets quoted text off from the lines around it.
func indent(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

// version returns one line made from what the Go toolchain put into the binary.
func version() string {
	v, revision := "(devel)", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 && !strings.Contains(v, s.Value[:12]) {
				revision = " " + s.Value[:12]
			}
		}
	}
	return fmt.Sprintf("pinproxy %s%s %s %s/%s\n", v, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
