package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"pinproxy/rules/typo"
)

// This file puts pflag's errors about a command line into our words. The hint is the flag or command that was
// probably meant.

// flagError is an error found by pflag.
func flagError(fs *pflag.FlagSet, err error) *usageError {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		letter := unknown.GetSpecifiedName()
		return &usageError{fmt.Sprintf("unknown flag -%s", letter), flagHint(fs, byInitial(fs, letter))}
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		return &usageError{fmt.Sprintf("unknown flag --%s", name), flagHint(fs, typo.Nearest(name, flagNames(fs)))}
	case errors.As(err, &missing):
		name := missing.GetFlag().Name
		return &usageError{fmt.Sprintf("--%s needs a value", name), flagHint(fs, name)}
	case errors.As(err, &invalid):
		f := invalid.GetFlag()
		hint := flagHint(fs, f.Name)
		if f.Value.Type() == "duration" && isNumber(invalid.GetValue()) {
			hint = fmt.Sprintf("pinproxy --%s %ss …", f.Name, invalid.GetValue())
		}
		return &usageError{fmt.Sprintf("--%s %s: %v", f.Name, shown(invalid.GetValue()), invalid.Unwrap()), hint}
	}
	return &usageError{strings.TrimPrefix(err.Error(), "pflag: "), "pinproxy --help"}
}

// valueError is an error about a flag's value, found by its parser.
func valueError(fs *pflag.FlagSet, name, value string, err error) *usageError {
	if usage, ok := errors.AsType[*usageError](err); ok {
		return usage
	}
	return &usageError{fmt.Sprintf("--%s %s: %v", name, shown(value), err), flagHint(fs, name)}
}

// elsewhere are commands of other programs, and what does the same here.
var elsewhere = map[string]string{
	"reload": "sudo kill -HUP $(pidof pinproxy)",
	"stop":   "sudo kill $(pidof pinproxy)",
	"down":   "sudo kill $(pidof pinproxy)",
	"start":  "sudo pinproxy --rule 'google.co.uk:443=63999'",
	"up":     "sudo pinproxy --rule 'google.co.uk:443=63999'",
	"run":    "pinproxy --rule RULE -- CMD…",
	"exec":   "pinproxy --rule RULE -- CMD…",
	"show":   "pinproxy status",
	"list":   "pinproxy status",
	"watch":  "pinproxy status --watch",
	"test":   "pinproxy check --connect HOST:PORT",
}

// commandHint returns the hint for a word that is not a command of pinproxy. Beside a rule it is a program's name.
func commandHint(word string, ruled bool) string {
	if hint, ok := elsewhere[word]; ok && !ruled {
		return hint
	}
	switch name := typo.Nearest(word, []string{"check", "status", "cleanup", "help", "version"}); name {
	case "":
		if ruled {
			return fmt.Sprintf("pinproxy --rule RULE -- %s …", word)
		}
		return "pinproxy --help"
	case "check":
		return "pinproxy check HOST:PORT"
	case "help", "version":
		return "pinproxy --" + name
	default:
		return "pinproxy " + name
	}
}

// flagHint returns how a flag is typed. Without a flag, it points to the list of them.
func flagHint(fs *pflag.FlagSet, name string) string {
	switch name {
	case "":
		return "pinproxy --help"
	case "help", "version":
		return "pinproxy --" + name
	case "connect":
		return "pinproxy check --connect HOST:PORT"
	case "json", "watch":
		return "pinproxy status --" + name
	case "rule":
		return "pinproxy --rule 'google.co.uk:443=63999'"
	}
	if fs.Lookup(name).NoOptDefVal != "" { // takes no value
		return fmt.Sprintf("pinproxy --%s …", name)
	}
	example := map[string]string{
		"rules": "FILE", "tun": "pin0", "offload": "auto", "dial-timeout": "30s", "gateway": "IFACE", "host-loopback": "192.0.2.1",
		"log-level": "info", "log-format": "json", "socket": "PATH", "socket-group": "GROUP", "user": "NAME", "http": "127.0.0.1:8080",
	}[name]
	return fmt.Sprintf("pinproxy --%s %s …", name, example)
}

func flagNames(fs *pflag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// byInitial finds the only flag that begins with a letter, as in -v for --version.
func byInitial(fs *pflag.FlagSet, letter string) string {
	found := ""
	for _, name := range flagNames(fs) {
		switch {
		case !strings.HasPrefix(name, strings.ToLower(letter)):
		case found != "":
			return ""
		default:
			found = name
		}
	}
	return found
}

func isNumber(text string) bool {
	return text != "" && !slices.ContainsFunc([]byte(text), func(c byte) bool { return c < '0' || c > '9' })
}

// shown returns a value as it was typed. It is quoted if it is empty, which would not be visible, or has white space.
func shown(value string) string {
	if value == "" || strings.ContainsAny(value, " \t\n") {
		return fmt.Sprintf("%q", value)
	}
	return value
}
