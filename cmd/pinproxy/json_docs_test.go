package main

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pinproxy/cmd/pinproxy/check"
	"pinproxy/cmd/pinproxy/monitor"
)

var manualWord = regexp.MustCompile(`[a-z_]+(?:\[\])?\*?`)

// The manual has every field that --json prints, in its place, with a * at those that may be missing. Renaming or
// leaving out a field fails here.
func TestDocumentedJSON(t *testing.T) {
	_, section, found := strings.Cut(strings.Join(readManual(t).lines, "\n"), "\n.Ss JSON\n")
	section, _, ended := strings.Cut(section, "\n.Sh ")
	status, checks, both := strings.Cut(section, "\n.Cm check :\n")
	if !found || !ended || !both {
		t.Fatal("no such section")
	}
	for _, c := range []struct {
		text, item string
		of         any
	}{
		{status, "", monitor.Status{}},
		{status, "rules[]", monitor.RuleState{}},
		{status, "ports[]", monitor.Port{}},
		{status, "holders[]", monitor.Holder{}},
		{status, "flows[]", monitor.Flow{}},
		{status, "failures[]", monitor.Failure{}},
		{status, "names[]", monitor.Name{}},
		{status, "process", monitor.Process{}},
		{checks, "", check.Report{}},
		{checks, "pinproxy", check.Pinproxy{}},
		{checks, "ip_local_port_range", check.Range{}},
		{checks, "addresses[]", check.Address{}},
		{checks, "pin", check.Pin{}},
		{checks, "ports[]", check.Port{}},
		{checks, "sockets[]", check.Socket{}},
		{checks, "connect", check.Connection{}},
	} {
		words := itemWords(c.text, c.item)
		for _, field := range fields(reflect.TypeOf(c.of)) {
			if !words[field] {
				t.Errorf("%s of %T, at %q, is not in the manual, which has %v", field, c.of, c.item, words)
			}
		}
	}
}

// itemWords returns the literals of an item of the lists, or those of all their heads.
func itemWords(text, item string) map[string]bool {
	words := make(map[string]bool)
	for _, part := range strings.Split(text, "\n.It Li ")[1:] {
		head, body, _ := strings.Cut(part, "\n")
		if item == "" {
			body = ".Li " + head
		} else if head != item {
			continue
		}
		for _, line := range strings.Split(body, "\n") {
			if literals, ok := strings.CutPrefix(line, ".Li "); ok {
				for _, word := range manualWord.FindAllString(literals, -1) {
					words[word] = true
				}
			}
		}
	}
	return words
}

// fields returns the names that encoding/json gives to a struct's fields, in the manual's form.
func fields(of reflect.Type) (names []string) {
	for i := range of.NumField() {
		f := of.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous || !f.IsExported() || name == "-":
			continue
		case f.Type.Kind() == reflect.Slice:
			name += "[]"
		}
		if rest == "omitempty" || rest == "omitzero" {
			name += "*"
		} else if rest != "" {
			panic(fmt.Sprintf("%s: %s", f.Name, rest))
		}
		names = append(names, name)
	}
	for i := range of.NumField() {
		if f := of.Field(i); f.Anonymous {
			for _, name := range fields(f.Type) {
				if !slices.ContainsFunc(names, func(other string) bool { return strings.Trim(other, "[]*") == strings.Trim(name, "[]*") }) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}
