package rules

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// writtenLine is a line of a file that is neither empty nor a comment.
type writtenLine struct {
	number int
	text   string // without its comment
}

var (
	lineEnd = regexp.MustCompile(`\r\n|\r|\n`)
	comment = regexp.MustCompile(`(^|[ \t])#[^\r\n]*$`)
)

// naiveLines reads a file the way the manual describes it.
func naiveLines(content string) (lines []writtenLine) {
	for i, text := range lineEnd.Split(strings.TrimPrefix(content, "\ufeff"), -1) {
		if text = strings.Trim(comment.ReplaceAllString(text, "$1"), "\r\n"); strings.Trim(text, " \t") != "" {
			lines = append(lines, writtenLine{i + 1, text})
		}
	}
	return lines
}

// printed is everything that a set tells of itself.
func printed(s *Set) []string {
	return append(append(texts(s.Rules()), texts(s.PortSets())...), fmt.Sprint(s.Static(), s.Names(), s.PinPorts(), s.HasNames()))
}

// FuzzFile reads files that somebody may have written, joined, copied or damaged. A file gives the rules of its
// lines, or one error at the first bad line.
func FuzzFile(f *testing.F) {
	for _, content := range []string{
		"",
		"a.example:443=63999",
		"# pins of the bank\r\n\r\n  a.example:443=1   # the main one\r\n\t\n#b.example:443=2\nc.example:443=3 busy=any",
		"\ufeffa.example:443=1\n\ufeffb.example:443=2\n",
		"# old\ra:443=1\rb:443=2 # new\r*.c:443=3",
		"a:443=1\r\r\n\n\r b:0=2",
		"a:443=1 \\\n busy=any\n",
		"a:443=1\x00\n", "\x00", "# \x00 \xff\na:443=1#b\n",
		"a:443=1 # caf\xe9\ncaf\xe9:443=1", "\xff\xfea\x00:\x00", "\xfe\xff\x00#",
		"a:443=1\na:443=2", "a:1-10=1\na:5-14=2\na:5-6=3", "*:*=1\n0.0.0.0/0:*=2\n[::/0]:443=3",
		"  bücher.example:0=1", "10.0.0.0/8:22=1022 busy=reclaim:1s cooldown=2s\v\n", "a:443=1\u2028b:443=2\u0085",
		"a:443=" + strings.Repeat("1", 5000), strings.Repeat("= ", 500), "#" + strings.Repeat("x", 5000) + "\na:443=1",
	} {
		f.Add([]byte(content))
	}
	var all strings.Builder
	for i, m := range malformed {
		fmt.Fprintf(&all, "host%d.example:443=%d # %s\n", i, 1+i, m.msg)
		f.Add([]byte(all.String()[max(0, all.Len()-200):] + m.rule))
	}
	f.Add([]byte(all.String()))
	f.Fuzz(func(t *testing.T, b []byte) {
		content := string(b)
		const source = "dir/my rules"
		rules, err := ParseFile(source, strings.NewReader(content))
		lines := naiveLines(content)
		for i, line := range lines {
			one, want := Parse(line.text)
			if want == nil {
				if i >= len(rules) && err == nil {
					t.Fatalf("line %d, %q, is no rule", line.number, line.text)
				}
				if err == nil {
					if at, number := rules[i].Source(); at != source || number != line.number || diffRules(rules[i], one) != "" {
						t.Errorf("line %d is %v of %s:%d, want %v", line.number, rules[i], at, number, one)
					}
				}
				continue
			}
			wrongLine(t, source, line, want, err)
			return
		}
		if err != nil || len(rules) != len(lines) {
			t.Fatalf("%d rules, %v; want %d", len(rules), err, len(lines))
		}
		sameSet(t, source, rules, lines)
	})
}

// wrongLine checks that the error is that of the line alone, and says where the line is.
func wrongLine(t *testing.T, source string, line writtenLine, want, err error) {
	var got, alone *SyntaxError
	if !errors.As(err, &got) || !errors.As(want, &alone) {
		t.Fatalf("%v, want %v", err, want)
	}
	place := fmt.Sprintf("%s:%d:%d: ", source, line.number, alone.Column)
	if err.Error() != place+alone.Msg || strings.ContainsAny(err.Error(), "\r\n") {
		t.Errorf("%q, want %q", err, place+alone.Msg)
	}
	if n := utf8.RuneCountInString(line.text); got.Column < 1 || got.Column > n+1 {
		t.Errorf("column %d of %d", got.Column, n)
	}
	if strings.Contains(got.Msg, "rules file only") {
		t.Errorf("in a file: %v", err)
	}
	if caret := strings.Split(got.Caret(), "\n"); len(caret) != 2 || strings.TrimLeft(caret[1], " ") != "^" {
		t.Errorf("the caret is %q", caret)
	}
	if got.Hint != "" {
		if fixed, err := ParseFile(source, strings.NewReader(got.Hint)); err != nil || len(fixed) != 1 {
			t.Errorf("%d rules in the hint %q: %v", len(fixed), got.Hint, err)
		}
	}
}

// sameSet checks that the file's rules are those given one by one, and that what they print parses to the same
// rules.
func sameSet(t *testing.T, source string, rules []*Rule, lines []writtenLine) {
	var given []*Rule
	var file strings.Builder
	for i, line := range lines {
		given = append(given, mustParse(t, line.text)...)
		file.WriteString(rules[i].String() + "\n")
	}
	again, err := ParseFile(source, strings.NewReader(file.String()))
	if err != nil {
		t.Fatalf("printed as %q: %v", file.String(), err)
	}
	if diff := cmp.Diff(texts(rules), texts(again)); diff != "" {
		t.Errorf("-file +printed:\n%s", diff)
	}
	set, err := NewSet(rules)
	of, ofErr := NewSet(given)
	if (err == nil) != (ofErr == nil) {
		t.Fatalf("%v; one by one %v", err, ofErr)
	}
	var conflict, ofConflict *ConflictError
	if errors.As(err, &conflict) && errors.As(ofErr, &ofConflict) {
		_, first := conflict.First.Source()
		_, second := conflict.Second.Source()
		for _, line := range []int{first, second} {
			if !strings.Contains(err.Error(), fmt.Sprintf("(%s:%d)", source, line)) {
				t.Errorf("line %d is missing in %v", line, err)
			}
		}
		if first >= second || conflict.First.text != ofConflict.First.text || conflict.Second.text != ofConflict.Second.text {
			t.Errorf("%v; one by one %v", err, ofErr)
		}
		return
	}
	if diff := cmp.Diff(printed(of), printed(set)); diff != "" {
		t.Errorf("-one by one +file:\n%s", diff)
	}
}

// A CR ends a line, so that no comment swallows the rule after it.
func TestFileOfOldLineEnds(t *testing.T) {
	got, err := ParseFile("rules.conf", strings.NewReader("# old\ra:443=1\r\nb:443=2 # new\r\rc:443=3"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got {
		lines = append(lines, r.where())
	}
	want := []string{`"a:443=1" (rules.conf:2)`, `"b:443=2" (rules.conf:3)`, `"c:443=3" (rules.conf:5)`}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A file that is not a list of rules is refused in the time it takes to read it, and does not fill the screen.
func TestFileOfOneLongLine(t *testing.T) {
	const size = 1 << 18
	for _, unit := range []string{"= ", "a ", "a.", "1,", "1-", "*.", "busy=any ", "xn--a.", "\"", ":", "[", "\u200b", "\t"} {
		for _, before := range []string{"", "a:443=1 ", "[", "a:443="} {
			start := time.Now()
			_, err := ParseFile("rules.conf", strings.NewReader(before+strings.Repeat(unit, size/len(unit))))
			var syntax *SyntaxError
			if err == nil && strings.Trim(unit, blanks) == "" {
				continue // blanks are allowed
			} else if !errors.As(err, &syntax) {
				t.Fatalf("%q and many %q: %v", before, unit, err)
			}
			caret := syntax.Caret()
			if took := time.Since(start); took > 5*time.Second { // linear time takes a hundredth of this
				t.Errorf("%q and many %q took %v", before, unit, took)
			}
			if len(caret) > 20*maxAround {
				t.Errorf("%q and many %q: the caret's lines have %d bytes", before, unit, len(caret))
			}
		}
	}
}
