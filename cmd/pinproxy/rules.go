package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"pinproxy/rules"
)

// ruleSources is where the rules come from: the command line, and files that may change.
type ruleSources struct{ texts, files []string }

// load parses all rules and makes them one set, the successor of the former one. The texts of files come from read.
func (s ruleSources) load(former *rules.Set, read func(path string) (string, error)) (*rules.Set, error) {
	var all []*rules.Rule
	for _, text := range s.texts {
		r, err := rules.Parse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	for _, file := range s.files {
		list, err := readRules(file, read)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		msg := "no rule given"
		if len(s.files) > 0 {
			msg = "no rule in " + strings.Join(s.files, ", ")
		}
		return nil, &usageError{msg, "pinproxy --rule 'google.co.uk:443=63999'"}
	}
	return former.Successor(all)
}

func readRules(file string, read func(path string) (string, error)) ([]*rules.Rule, error) {
	text, err := read(file)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, &usageError{fmt.Sprintf("read rules file %s: %s", file, err), ""}
	}
	return rules.ParseFile(file, strings.NewReader(text))
}

// readText reads a file as it is now.
func readText(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}
