package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	accounts "os/user"
	"strconv"
	"strings"

	"pinproxy/rules"
)

// ruleSources is where the rules come from: the command line, and files that may change.
type ruleSources struct{ texts, files []string }

// load parses all rules and makes one set of them, the successor of the former one. read returns the texts of files.
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
		if len(s.files) > 0 {
			return nil, &usageError{"no rule in " + strings.Join(s.files, ", "), "write rules there, one a line, such as google.co.uk:443=63999"}
		}
		return nil, &usageError{"no rule given", "pinproxy --rule 'google.co.uk:443=63999'"}
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
		hint := ""
		if file == "-" {
			hint = "pinproxy --rules /dev/stdin …"
		}
		return nil, &usageError{fmt.Sprintf("read rules file %s: %s", file, towards(err)), hint}
	}
	return rules.ParseFile(file, strings.NewReader(text))
}

// towards names the user of this process in an error that says what it may not do: it is not who typed the command.
func towards(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	name := strconv.Itoa(os.Geteuid())
	if u, err := accounts.LookupId(name); err == nil {
		name = u.Username
	}
	return fmt.Errorf("%w to user %s, as whom pinproxy runs", err, name)
}

// maxRulesFile is how many bytes of rules are read: more than a million rules. Without a limit, a file that has no
// end, such as /dev/zero, would take all memory.
const maxRulesFile = 64 << 20

// readText reads a file as it is now.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRulesFile+1))
	if err == nil && len(b) > maxRulesFile {
		err = fmt.Errorf("it has more than %d MiB", maxRulesFile>>20)
	}
	return string(b), err
}
