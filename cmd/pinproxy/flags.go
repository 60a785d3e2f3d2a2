package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"pinproxy/cmd/pinproxy/check"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/netstack/link"
	"pinproxy/netstack/netns"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// options are the parsed command line.
type options struct {
	command string   // "", "check", "status" or "cleanup"
	argv    []string // after --: the command to run, if there is one
	help    bool
	version bool

	set         *rules.Set
	rules       ruleSources
	tun         string
	offload     bool
	dialTimeout time.Duration
	strict      bool
	gateways    []string // devices; the hosts behind them are pinned, too
	dryRun      bool
	loopback    []netip.Addr // addresses at which a command finds the host's loopback
	logLevel    slog.Level
	logJSON     bool
	socket      string // path of the control socket; "" is the default
	user        string // the user that root becomes; "" is the default

	target  check.Target
	connect bool
	json    bool
	watch   bool

	socketGroup int    // group that may also open the control socket; -1: none
	http        string // where to serve the page, as host:port; "" for nowhere
}

// usageError is a mistake on the command line.
type usageError struct{ msg, remedy string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Hint() string  { return e.remedy }

// newFlagSet defines the flags, which are read into o, some by parseValues, --host-loopback by commandFlags.
func newFlagSet(o *options) *pflag.FlagSet {
	*o = options{tun: link.Default, offload: true, socketGroup: -1}
	fs := pflag.NewFlagSet("pinproxy", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVarP(&o.help, "help", "h", false, "")
	fs.BoolVar(&o.version, "version", false, "")
	fs.StringArrayVarP(&o.rules.texts, "rule", "r", nil, "")
	fs.StringArrayVarP(&o.rules.files, "rules", "f", nil, "")
	parsed(fs, &o.tun, "tun", parseTUN)
	parsed(fs, &o.offload, "offload", choice("off", "auto"))
	fs.DurationVar(&o.dialTimeout, "dial-timeout", proxy.DefaultDialTimeout, "")
	fs.BoolVar(&o.strict, "strict", false, "")
	fs.StringArrayVar(&o.gateways, "gateway", nil, "")
	fs.BoolVar(&o.dryRun, "dry-run", false, "")
	fs.StringArray("host-loopback", nil, "")
	parsed(fs, &o.logLevel, "log-level", parseLevel)
	parsed(fs, &o.logJSON, "log-format", choice("text", "json"))
	fs.StringVar(&o.socket, "socket", "", "")
	parsed(fs, &o.socketGroup, "socket-group", groupOf)
	parsed(fs, &o.user, "user", knownUser)
	parsed(fs, &o.http, "http", parseHTTP)
	fs.BoolVar(&o.connect, "connect", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.watch, "watch", false, "")
	return fs
}

// parsed defines a flag whose last value parse reads into to. parseValues calls it.
func parsed[T any](fs *pflag.FlagSet, to *T, name string, parse func(text string) (T, error)) {
	fs.Var(&unparsed{parse: func(text string) (err error) {
		*to, err = parse(text)
		return err
	}}, name, "")
}

// unparsed is a flag's last value, as it was typed. What is wrong with it matters only where the flag has a meaning.
type unparsed struct {
	text  string
	parse func(text string) error
}

func (u *unparsed) Set(text string) error { u.text = text; return nil }
func (u *unparsed) String() string        { return u.text }
func (*unparsed) Type() string            { return "string" }

// parseValues parses the values of the flags that were given.
func parseValues(fs *pflag.FlagSet) (err error) {
	fs.Visit(func(f *pflag.Flag) {
		u, ok := f.Value.(*unparsed)
		if !ok || err != nil {
			return
		}
		if e := u.parse(u.text); e != nil {
			err = valueError(fs, f.Name, u.text, e)
		}
	})
	return err
}

// parseArgs reads the command line. Its errors are *usageError, *rules.SyntaxError or *rules.ConflictError. Each
// means exit status 2, or 125 with a command to run. read returns the texts of rules files.
func parseArgs(args []string, read func(path string) (string, error)) (o options, err error) {
	fs := newFlagSet(&o)
	if err := fs.Parse(args); err != nil {
		if words := fs.Args(); len(words) > 0 && !isCommand(words[0]) { // the flag may be of a program, behind a -- that is missing
			return o, o.positional(words)
		}
		return o, flagError(fs, err)
	}
	if o.help || o.version {
		return o, nil
	}
	if path, err := filepath.Abs(o.socket); err == nil && o.socket != "" {
		o.socket = path // check and status are told of it, and run elsewhere
	}
	words := fs.Args()
	if dash := fs.ArgsLenAtDash(); dash >= 0 {
		words, o.argv = words[:dash], words[dash:]
		if len(o.argv) == 0 {
			return o, &usageError{"no command behind --", "pinproxy --rule RULE -- curl https://google.co.uk/"}
		}
		if !fs.Changed("log-level") {
			o.logLevel = slog.LevelWarn // standard error belongs to the command
		}
	}
	if err := o.positional(words); err != nil {
		return o, err
	}
	if err := o.belong(fs); err != nil {
		return o, err
	}
	if err := o.commandFlags(fs); err != nil {
		return o, err
	}
	if err := parseValues(fs); err != nil {
		return o, err
	}
	if o.dialTimeout <= 0 {
		return o, &usageError{fmt.Sprintf("--dial-timeout %s: must be more than 0", o.dialTimeout), "pinproxy --dial-timeout 30s …"}
	}
	if o.gateways, err = gatewayNames(o.gateways, o.tun); err != nil {
		return o, err
	}
	if o.command == "" || o.command == "check" && len(o.rules.texts)+len(o.rules.files) > 0 {
		o.set, err = o.rules.load(new(rules.Set), read)
	}
	return o, err
}

func parseTUN(name string) (string, error) {
	if !host.ValidName(name) || strings.Contains(name, "%") {
		return "", errors.New("is not a device's name: up to 15 bytes, without blank, slash, colon or percent sign")
	}
	return name, nil
}

// choice returns a parser for a flag with two values, which says whether it has the second.
func choice(no, yes string) func(string) (bool, error) {
	return func(text string) (bool, error) {
		if text != no && text != yes {
			return false, fmt.Errorf("is neither %s nor %s", yes, no)
		}
		return text == yes, nil
	}
}

func parseLoopback(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "":
		return a, errors.New("is no address")
	case !a.IsGlobalUnicast() || a.Is4In6() || netns.StandIns.Contains(a):
		return a, errors.New("is not an address that a connection can go to")
	}
	return a, nil
}

func parseLevel(text string) (l slog.Level, err error) {
	if err := l.UnmarshalText([]byte(text)); err != nil {
		return l, errors.New("is none of debug, info, warn, error")
	}
	return l, nil
}

// gatewayNames refuses what can't be a gateway. A device that does not exist yet may come later, as with ip(8)'s
// rules.
func gatewayNames(names []string, tun string) ([]string, error) {
	var list []string
	for _, name := range names {
		switch {
		case !host.ValidName(name):
			return nil, &usageError{fmt.Sprintf("--gateway %s: is not a device's name", terminal.Quote(name)), "ip -br link"}
		case name == "lo":
			return nil, &usageError{"--gateway lo: no host is behind it; this host's own connections are pinned anyway", "leave out --gateway lo"}
		case name == tun:
			return nil, &usageError{
				fmt.Sprintf("--gateway %s: is pinproxy's own device; a gateway is one that hosts are behind", name),
				"ip -br link, for the device of your LAN, bridge or tunnel",
			}
		case !slices.Contains(list, name):
			list = append(list, name)
		}
	}
	return list, nil
}

// commandFlags checks the flags that are only for a command, or only for a whole host.
func (o *options) commandFlags(fs *pflag.FlagSet) error {
	loopback, _ := fs.GetStringArray("host-loopback") // it is one
	switch {
	case len(o.argv) == 0 && len(loopback) > 0:
		return &usageError{"--host-loopback is for a command: on the whole host loopback is loopback", "pinproxy --rule RULE --host-loopback " + terminal.Quote(loopback[0]) + " -- CMD"}
	case len(o.argv) == 0:
		return nil
	case o.command != "":
		return &usageError{fmt.Sprintf("%s takes no command", o.command), "pinproxy " + o.command}
	case o.dryRun:
		return &usageError{"--dry-run with a command: nothing on the host is changed for it", "leave out --dry-run"}
	case o.strict:
		return &usageError{"--strict with a command: all of its connections are captured anyway", "leave out --strict"}
	case len(o.gateways) > 0:
		return &usageError{"--gateway with a command: no host is behind a command", "leave out --gateway"}
	case fs.Lookup("user").Value.String() != "":
		return &usageError{"--user with a command: it runs as whoever started it", "leave out --user"}
	}
	for _, name := range []string{"socket", "socket-group", "http"} {
		if fs.Changed(name) {
			return &usageError{fmt.Sprintf("--%s with a command: check, status and the page are for a whole host", name), "leave out --" + name}
		}
	}
	for _, text := range loopback {
		a, err := parseLoopback(text)
		if err != nil {
			return valueError(fs, "host-loopback", text, err)
		}
		o.loopback = append(o.loopback, a)
	}
	return nil
}

// serves says whether a whole host is to be pinned.
func (o *options) serves() bool {
	return !o.help && !o.version && !o.dryRun && o.command == "" && len(o.argv) == 0
}

// positional reads the arguments that are not flags: nothing, or a command.
func (o *options) positional(args []string) error {
	ruleTexts := o.rules.texts
	switch {
	case len(args) == 0:
		return nil
	case args[0] == "check" && len(args) == 2:
		o.command = args[0]
		var err error
		o.target, err = parseTarget(args[1])
		return err
	case args[0] == "check" && len(args) == 1:
		return &usageError{"check what? HOST:PORT is missing", "pinproxy check www.bank.example:443"}
	case args[0] == "check":
		hint := args[1]
		if t, err := parseTarget(net.JoinHostPort(args[1], args[2])); err == nil { // as for nc
			hint = terminal.Quote(t.String())
		}
		return &usageError{fmt.Sprintf("unexpected argument %q: check takes one HOST:PORT", args[2]), "pinproxy check " + hint}
	case isCommand(args[0]) && len(args) == 1:
		o.command = args[0]
		return nil
	case isCommand(args[0]):
		return &usageError{fmt.Sprintf("unexpected argument %q", args[1]), "pinproxy " + args[0]}
	case strings.Contains(args[0], "=") && (len(ruleTexts) == 0 || isRule(args[0])):
		return &usageError{fmt.Sprintf("unexpected argument %q", args[0]), "pinproxy --rule " + terminal.Quote(args[0])}
	case len(ruleTexts) > 0 && isOption(args[0]):
		// An option of a rule that the shell has split off.
		return &usageError{
			fmt.Sprintf("unexpected argument %q: a rule with options is one argument, so quote it", args[0]),
			"pinproxy --rule " + terminal.Quote(ruleTexts[len(ruleTexts)-1]+" "+strings.Join(args, " ")),
		}
	}
	return &usageError{fmt.Sprintf("unexpected argument %q", args[0]), commandHint(args[0], len(ruleTexts)+len(o.rules.files) > 0)}
}

func isRule(word string) bool {
	_, err := rules.Parse(word)
	return err == nil
}

func isCommand(word string) bool { return word == "check" || word == "status" || word == "cleanup" }

// belong refuses flags that have no meaning for the command.
func (o *options) belong(fs *pflag.FlagSet) error {
	var err error
	fs.Visit(func(f *pflag.Flag) {
		mine := true
		switch o.command {
		case "check":
			mine = slices.Contains([]string{"rule", "rules", "connect", "json", "socket", "dial-timeout", "tun"}, f.Name)
		case "status":
			mine = slices.Contains([]string{"json", "socket", "watch"}, f.Name)
		case "cleanup":
			mine = false
		default:
			mine = !slices.Contains([]string{"connect", "json", "watch"}, f.Name)
		}
		switch {
		case mine || err != nil:
		case o.command == "":
			hint := "pinproxy check --" + f.Name + " HOST:PORT"
			if f.Name == "watch" {
				hint = "pinproxy status --watch"
			}
			err = &usageError{fmt.Sprintf("--%s goes with a command", f.Name), hint}
		default:
			hint := "pinproxy " + o.command
			if o.command == "check" {
				hint += " " + o.target.String()
			}
			err = &usageError{fmt.Sprintf("--%s means nothing to %s", f.Name, o.command), hint}
		}
	})
	return err
}

func isOption(arg string) bool {
	return strings.HasPrefix(arg, "busy=") || strings.HasPrefix(arg, "cooldown=")
}
