package rules

import (
	"fmt"
	"io"
	"strings"
)

// ParseFile reads rules from r, one a line. Empty lines are skipped. A '#' at the beginning of a line or after a
// blank starts a comment. Lines may end in LF, CR LF or CR: if a comment went on after a CR, it would hide a rule
// that editors show. A byte order mark is ignored. The source, usually the file's path, is named in errors and
// remembered by the rules. The first bad rule ends reading with its [*SyntaxError], whose columns count from the
// start of the line.
func ParseFile(source string, r io.Reader) ([]*Rule, error) {
	content, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read rules from %q: %w", source, err)
	}
	var rules []*Rule
	line := 0
	ends := strings.NewReplacer("\r\n", "\n", "\r", "\n")
	for text := range strings.SplitSeq(ends.Replace(strings.TrimPrefix(string(content), "\ufeff")), "\n") {
		line++
		text = withoutComment(text)
		if strings.Trim(text, blanks) == "" {
			continue
		}
		rule, err := ParseAt(source, line, text)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func withoutComment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || strings.IndexByte(blanks, line[i-1]) >= 0) {
			return line[:i]
		}
	}
	return line
}
