package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"pinproxy/rules"
)

// What the documents show must be true: every rule in them parses, or fails as shown, and they name only flags that
// exist.
//
// A rule is looked for in two places:
//
//   - between the quotes after --rule or -r, anywhere;
//   - at the beginning of a line of a display, up to two blanks or a comment: the first word has the form
//     HOST:PORTS=PIN. It may be quoted. A display is what the manual has between .Bd -literal and .Ed, what
//     README.md and docs/design.md indent by four blanks, and what the usage text indents by two.
//
// If the line after a command begins with "pinproxy: error:", the command must give exactly that error. A rule with a caret
// under it is quoted by an error.

// document is a text with its displays.
type document struct {
	name    string
	lines   []string
	display []bool // whether the line with that number is in a display
}

const (
	readmePath = "../../README.md"
	designPath = "../../docs/design.md"
	manualPath = "../../docs/pinproxy.8"
)

func documents(t *testing.T) []document {
	t.Helper()
	usageText := document{name: "usage", lines: strings.Split(usage, "\n")}
	usageText.indented("  ")
	docs := []document{usageText, readManual(t)}
	for _, file := range []string{readmePath, designPath} {
		d := document{name: file, lines: strings.Split(readDocument(t, file), "\n")}
		d.indented("    ")
		docs = append(docs, d)
	}
	return docs
}

func readDocument(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (d *document) indented(by string) {
	for _, line := range d.lines {
		d.display = append(d.display, strings.HasPrefix(line, by))
	}
}

// readManual undoes the escapes of mdoc(7) that the manual uses.
func readManual(t *testing.T) document {
	t.Helper()
	text := strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(dq`, `"`, `\(ha`, "^", `\&`, "").Replace(readDocument(t, manualPath))
	d := document{name: manualPath, lines: strings.Split(text, "\n")}
	in := false
	for _, line := range d.lines {
		switch {
		case strings.HasPrefix(line, ".Bd -literal"):
			in = true
		case line == ".Ed":
			in = false
		}
		d.display = append(d.display, in)
	}
	return d
}

// next returns the line after number i, without indentation.
func (d *document) next(i int) string {
	if i+1 < len(d.lines) {
		return strings.TrimSpace(d.lines[i+1])
	}
	return ""
}

var (
	commandRule = regexp.MustCompile(`(?:--rule|-r)[ =]'([^']*)'`)
	displayRule = regexp.MustCompile(`^\s*(?:'([^=']+:[^=']+=[0-9[][^']*)'|([^\s=']+:[^\s=']+=[0-9[]\S*(?: \S+)*))`)
	ruleComment = regexp.MustCompile(`\s#.*`)
)

func TestDocumentedRules(t *testing.T) {
	for _, d := range documents(t) {
		found := 0
		for i, line := range d.lines {
			if d.display[i] && d.next(i) != "^" {
				if m := displayRule.FindStringSubmatch(ruleComment.ReplaceAllString(line, "")); m != nil {
					found++
					d.checkRule(t, i, m[1]+m[2], "")
				}
			}
			for _, m := range commandRule.FindAllStringSubmatch(line, -1) {
				found++
				msg, _ := strings.CutPrefix(d.next(i), "pinproxy: error: ")
				if msg == d.next(i) {
					msg = ""
				}
				d.checkRule(t, i, m[1], msg)
			}
		}
		if found < 3 {
			t.Errorf("%s: %d rules found: has its form changed?", d.name, found)
		}
	}
}

// checkRule parses a rule found at a line. msg is the error it must give, or "" for none.
func (d *document) checkRule(t *testing.T, i int, rule, msg string) {
	t.Helper()
	got := ""
	if _, err := rules.Parse(rule); err != nil {
		got = err.Error()
	}
	if got != msg {
		t.Errorf("%s:%d: %q: error is %q, want %q", d.name, i+1, rule, got, msg)
	}
}

func TestDocumentedFlags(t *testing.T) {
	want := declaredFlags()
	inUsage := flagsIn(regexp.MustCompile(`(?m)^ +(?:-(\w), )? *--([a-z-]+)`), usage)
	if diff := cmp.Diff(want, inUsage); diff != "" {
		t.Errorf("flags that exist (-) and those of the usage text (+):\n%s", diff)
	}
	man := readDocument(t, manualPath)
	_, options, _ := strings.Cut(man, "\n.Sh OPTIONS\n")
	options, _, _ = strings.Cut(options, "\n.Sh ")
	inManual := flagsIn(regexp.MustCompile(`(?m)^\.It (?:Fl (\w) , )?Fl -([a-z-]+)`), options)
	if diff := cmp.Diff(want, inManual); diff != "" {
		t.Errorf("flags that exist (-) and those of the manual's OPTIONS (+):\n%s", diff)
	}
	for _, m := range regexp.MustCompile(`\bFl -?([\w-]+)`).FindAllStringSubmatch(man, -1) {
		if !slices.Contains(want, m[1]) {
			t.Errorf("%s: there is no flag %q", manualPath, m[1])
		}
	}
	for _, d := range documents(t) {
		for i, line := range d.lines {
			for _, name := range flagsOfCommand(line) {
				if !slices.Contains(want, name) {
					t.Errorf("%s:%d: there is no flag %q", d.name, i+1, name)
				}
			}
		}
	}
}

// flagsIn returns the names that the groups of a pattern match, sorted.
func flagsIn(pattern *regexp.Regexp, text string) []string {
	names := map[string]bool{}
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		for _, name := range m[1:] {
			if name != "" {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

var (
	inQuotes      = regexp.MustCompile(`'[^']*'`)
	commandArgs   = regexp.MustCompile("\\bpinproxy ([^&|`]*)")
	flagOnCommand = regexp.MustCompile(`(?:^|[\s[])--?([a-z][a-z-]*)`)
)

// flagsOfCommand returns the flags on a line after the word pinproxy, up to the end of the command.
func flagsOfCommand(line string) []string {
	var names []string
	for _, c := range commandArgs.FindAllStringSubmatch(inQuotes.ReplaceAllString(line, ""), -1) {
		args, _, _ := strings.Cut(c[1], " -- ")
		for _, m := range flagOnCommand.FindAllStringSubmatch(args, -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// declaredFlags returns the names and shorthands of all flags, sorted.
func declaredFlags() (names []string) {
	newFlagSet(new(options)).VisitAll(func(f *pflag.Flag) {
		names = append(names, f.Name)
		if f.Shorthand != "" {
			names = append(names, f.Shorthand)
		}
	})
	slices.Sort(names)
	return names
}

// The examples in the installed rules file parse, all of them together. As installed, the file has no rules.
func TestExampleRules(t *testing.T) {
	const path = "../../packaging/pinproxy.rules"
	text := readDocument(t, path)
	if list, err := rules.ParseFile(path, strings.NewReader(text)); err != nil || len(list) != 0 {
		t.Errorf("as it is it has %d rules, %v", len(list), err)
	}
	examples := regexp.MustCompile(`(?m)^# (\S+:\S+=\S.*)$`).ReplaceAllString(text, "$1")
	list, err := rules.ParseFile(path, strings.NewReader(examples))
	if err == nil {
		_, err = rules.NewSet(list)
	}
	if err != nil || len(list) < 6 {
		t.Errorf("%d examples, %v", len(list), err)
	}
}

// Other files that are installed or shown name only flags that exist.
func TestExampleFlags(t *testing.T) {
	want := declaredFlags()
	for _, path := range []string{"systemd/pinproxy.service", "pinproxy.default", "kubernetes/sidecar.yaml"} {
		found := 0
		for _, m := range regexp.MustCompile(`(?:^|[\s"'[(\x60])--([a-z][a-z-]*)`).FindAllStringSubmatch(readDocument(t, "../../packaging/"+path), -1) {
			found++
			if !slices.Contains(want, m[1]) {
				t.Errorf("packaging/%s: there is no flag %q", path, m[1])
			}
		}
		if found == 0 {
			t.Errorf("packaging/%s: no flag found", path)
		}
	}
}
