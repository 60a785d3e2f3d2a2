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

// load parses all rules and makes them one set, the successor of the former one.
func (s ruleSources) load(former *rules.Set) (*rules.Set, error) {
	var all []*rules.Rule
	for _, text := range s.texts {
		r, err := rules.Parse(text)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	for _, file := range s.files {
		list, err := readRules(file)
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

func readRules(file string) ([]*rules.Rule, error) {
	f, err := os.Open(file)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, &usageError{fmt.Sprintf("read rules file %s: %s", file, err), ""}
	}
	defer f.Close()
	return rules.ParseFile(file, f)
}
