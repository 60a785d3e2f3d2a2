package rules

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// blanks separate a rule from its options.
const blanks = " \t"

// Parse reads one rule. The error is a [*SyntaxError].
func Parse(text string) (*Rule, error) { return ParseAt("", 0, text) }

// ParseAt reads one rule that was written in source, at line if that is more than 0. Both are recorded in the
// [*SyntaxError] or in the rule, where [*ConflictError] finds them.
func ParseAt(source string, line int, text string) (*Rule, error) {
	rule, err := (&parser{text: text}).rule()
	if err != nil {
		err.Source, err.Line = source, line
		return nil, err
	}
	rule.source, rule.line = source, line
	return rule, nil
}

// parser reads the rule in text. Every method that may not find what it looks for returns a *SyntaxError made by
// fail. The first one ends parsing.
type parser struct {
	text string
	// depth is how many hints led here. If it is more than 0, text is itself a hint.
	depth int
}

// part is a piece of the rule's text and the byte offset where it begins.
type part struct {
	s  string
	at int
}

func (p part) end() int { return p.at + len(p.s) }

// cut splits p at the byte offset i of p.s and leaves out the skip bytes there.
func (p part) cut(i, skip int) (before, after part) {
	return part{p.s[:i], p.at}, part{p.s[i+skip:], p.at + i + skip}
}

// split splits p at every sep, which is one byte.
func (p part) split(sep string) []part {
	var parts []part
	at := p.at
	for s := range strings.SplitSeq(p.s, sep) {
		parts = append(parts, part{s, at})
		at += len(s) + len(sep)
	}
	return parts
}

// maxHints is how many mistakes in a row a hint may correct.
const maxHints = 10

// fail returns the error that msg describes, at the byte offset at. The candidate is the rule with this mistake
// corrected, or "" if that can't be done. If the candidate parses, it becomes the hint. If it has another mistake
// whose hint parses, that hint is used. So a hint is always a rule.
func (p *parser) fail(at int, candidate, format string, args ...any) *SyntaxError {
	err := &SyntaxError{
		Text:   p.text,
		Column: utf8.RuneCountInString(p.text[:at]) + 1,
		Msg:    fmt.Sprintf(format, args...),
	}
	if candidate == "" || candidate == p.text || p.depth >= maxHints {
		return err
	}
	if _, next := (&parser{text: candidate, depth: p.depth + 1}).rule(); next == nil {
		err.Hint = candidate
	} else {
		err.Hint = next.Hint
	}
	return err
}

// with returns the rule's text with old replaced, for use as a hint.
func (p *parser) with(old part, replacement string) string {
	return strings.Trim(p.text[:old.at]+replacement+p.text[old.end():], blanks)
}

// rule = host ":" ports "=" pin { " " option }
func (p *parser) rule() (*Rule, *SyntaxError) {
	if err := p.characters(); err != nil {
		return nil, err
	}
	fields := p.fields()
	if len(fields) == 0 {
		return nil, p.fail(len(p.text), "", "the rule is empty")
	}
	if err := p.joined(fields); err != nil {
		return nil, err
	}
	host, ports, pin, err := p.sides(fields)
	if err != nil {
		return nil, err
	}

	r := new(Rule)
	if r.host, err = p.host(host); err != nil {
		return nil, err
	}
	if r.ports, err = p.ports(ports, true); err != nil {
		return nil, err
	}
	if r.pin, err = p.pin(pin, r.host); err != nil {
		return nil, err
	}
	if err := p.options(r, fields[1:]); err != nil {
		return nil, err
	}
	r.text = ruleText(r)
	return r, nil
}

// characters refuses characters that no rule contains and that shells, editors and word processors leave behind.
func (p *parser) characters() *SyntaxError {
	const quotes = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
	const invisible = "\ufeff\u200b\u2060\u00ad"
	cleaned := func() string { // removes every such character at once
		return strings.Trim(strings.Map(func(r rune) rune {
			switch {
			case strings.ContainsRune(quotes+invisible+`\`, r):
				return -1
			case unicode.IsSpace(r) && r != '\n' && r != '\r':
				return ' '
			}
			return r
		}, p.text), blanks)
	}
	for at := 0; at < len(p.text); {
		r, size := utf8.DecodeRuneInString(p.text[at:])
		switch {
		case r == utf8.RuneError && size == 1:
			return p.fail(at, "", "the rule is not valid UTF-8")
		case strings.ContainsRune(quotes, r):
			return p.fail(at, cleaned(), "a quote is not part of a rule")
		case r == '\\':
			return p.fail(at, cleaned(), "a backslash is not part of a rule")
		case r == '\n' || r == '\r':
			return p.fail(at, "", "a line break is not part of a rule")
		case r == ' ' || r == '\t':
		case unicode.IsSpace(r):
			return p.fail(at, cleaned(), "%U is not a plain space", r)
		case strings.ContainsRune(invisible, r):
			return p.fail(at, cleaned(), "an invisible character, %U, is not part of a rule", r)
		case unicode.IsControl(r):
			return p.fail(at, "", "a control character, %U, is not part of a rule", r)
		}
		at += size
	}
	return nil
}

// fields splits the rule at blanks.
func (p *parser) fields() []part {
	var fields []part
	for i := 0; i < len(p.text); {
		if strings.IndexByte(blanks, p.text[i]) >= 0 {
			i++
			continue
		}
		n := strings.IndexAny(p.text[i:], blanks)
		if n < 0 {
			n = len(p.text) - i
		}
		fields = append(fields, part{p.text[i : i+n], i})
		i += n
	}
	return fields
}

// joined refuses blanks next to the signs that join the parts of a rule.
func (p *parser) joined(fields []part) *SyntaxError {
	const signs = "=:,-"
	apart := func(i int) bool { // whether there is a blank too many between fields i-1 and i
		before, after := fields[i-1].s, fields[i].s
		return strings.IndexByte(signs, after[0]) >= 0 || strings.IndexByte(signs, before[len(before)-1]) >= 0
	}
	for i := 1; i < len(fields); i++ {
		if !apart(i) {
			continue
		}
		var joined strings.Builder
		joined.WriteString(fields[0].s)
		for j := 1; j < len(fields); j++ {
			if !apart(j) {
				joined.WriteByte(' ')
			}
			joined.WriteString(fields[j].s)
		}
		return p.fail(fields[i-1].end(), joined.String(), "a blank may stand only before an option")
	}
	return nil
}

// sides splits the first field, host:ports=pin.
func (p *parser) sides(fields []part) (host, ports, pin part, err *SyntaxError) {
	first := fields[0]
	for _, arrow := range []string{"=>", "->", "==", "\u2192"} {
		if i := strings.Index(first.s, arrow); i >= 0 {
			_, after := first.cut(i, 0)
			after.s = arrow
			err = p.fail(after.at, p.with(after, "="), `"=" stands between ports and pin, not %q`, arrow)
			return
		}
	}
	if i := strings.Index(first.s, "://"); i >= 0 {
		scheme := part{first.s[:i+len("://")], first.at}
		err = p.fail(first.at, p.fromURL(first, scheme), "a rule begins with a host, not with %q", scheme.s)
		return
	}

	i := strings.IndexByte(first.s, '=')
	if i < 0 {
		err = p.noPin(fields)
		return
	}
	left, pin := first.cut(i, 1)
	if isOption(left.s) {
		err = p.fail(first.at, "", "the rule itself is missing before its options; put rule and options in one pair of quotes")
		return
	}
	host, ports, err = p.destination(left)
	return host, ports, pin, err
}

// fromURL guesses the rule that was meant by one that begins like a URL.
func (p *parser) fromURL(field, scheme part) string {
	left, pin, _ := strings.Cut(field.s[len(scheme.s):], "=")
	left, _, _ = strings.Cut(left, "/")
	if strings.HasSuffix(left, "]") || !strings.Contains(left, ":") {
		left += ":" + servicePort(strings.TrimSuffix(scheme.s, "://"))
	}
	return p.with(field, left+"="+pin)
}

// noPin says what is wrong with a rule whose first field has no '='.
func (p *parser) noPin(fields []part) *SyntaxError {
	first := fields[0]
	if strings.HasPrefix(first.s, "#") {
		return p.fail(first.at, "", "a comment is part of a rules file only")
	}
	if isWay(first.s) {
		return p.fail(first.at, "", "the rule itself is missing before its options; put rule and options in one pair of quotes")
	}
	if len(fields) > 1 && isPorts(fields[1].s) {
		gap := part{p.text[first.end():fields[1].at], first.end()}
		return p.fail(gap.at, p.with(gap, "="), `"=" is missing between ports and pin`)
	}
	// host:ports:pin, as other programs write port forwards.
	if i := strings.LastIndexByte(first.s, ':'); i > 0 && isPorts(first.s[i+1:]) {
		before, _ := first.cut(i, 1)
		if _, _, err := p.destination(before); err == nil {
			colon := part{":", before.end()}
			return p.fail(colon.at, p.with(colon, "="), `"=" stands between ports and pin, not ":"`)
		}
	}
	for _, field := range fields[1:] {
		if name, _, ok := strings.Cut(field.s, "="); ok && !isOption(name) {
			return p.fail(first.end(), "", "a blank may stand only before an option")
		}
	}
	return p.fail(first.end(), "", `"=" and the pin are missing after the destination`)
}

// destination splits host ":" ports.
func (p *parser) destination(left part) (host, ports part, err *SyntaxError) {
	if strings.HasPrefix(left.s, "[") {
		i := strings.IndexByte(left.s, ']')
		if i < 0 {
			return host, ports, p.fail(left.at, p.closeBracket(left), `"[" has no "]"`)
		}
		host, rest := left.cut(i+1, 0)
		if strings.HasPrefix(rest.s, "/") {
			length, _, _ := strings.Cut(rest.s, ":")
			wrong := part{"]" + length, host.end() - 1}
			return host, ports, p.fail(rest.at, p.with(wrong, length+"]"), "the prefix length stands inside the brackets")
		}
		if !strings.HasPrefix(rest.s, ":") {
			return host, ports, p.noPorts(host, rest)
		}
		_, ports = rest.cut(0, 1)
		return host, ports, nil
	}

	switch strings.Count(left.s, ":") {
	case 0:
		return left, ports, p.noPorts(left, part{"", left.end()})
	case 1:
		host, ports = left.cut(strings.IndexByte(left.s, ':'), 1)
		if host.s == "" {
			return host, ports, p.fail(host.at, p.with(host, "*"), "the host is missing")
		}
		return host, ports, nil
	}
	last := strings.LastIndexByte(left.s, ':')
	host, ports = left.cut(last, 1)
	if looksIPv6(host.s) {
		return host, ports, p.fail(host.at, p.with(host, "["+host.s+"]"), "an IPv6 address stands in brackets")
	}
	if looksIPv6(left.s) {
		return host, ports, p.fail(left.at, p.with(left, "["+left.s+"]"), "an IPv6 address stands in brackets")
	}
	candidate := ""
	if name, low, _ := strings.Cut(host.s, ":"); isPorts(low) && isPorts(ports.s) { // other programs write a range as 8000:8010
		candidate = p.with(left, name+":"+low+"-"+ports.s)
	}
	second := strings.IndexByte(left.s, ':') + 1
	second += strings.IndexByte(left.s[second:], ':')
	return host, ports, p.fail(left.at+second, candidate, `only one ":" stands between host and ports`)
}

// closeBracket guesses where the missing bracket of an IPv6 host belongs: before the ports.
func (p *parser) closeBracket(left part) string {
	i := strings.LastIndexByte(left.s, ':')
	if i < 0 || !looksIPv6(left.s[1:i]) {
		return ""
	}
	_, ports := left.cut(i, 0)
	return p.with(part{"", ports.at}, "]")
}

// noPorts says that rest follows the host instead of ":" and ports.
func (p *parser) noPorts(host, rest part) *SyntaxError {
	if rest.s != "" {
		return p.fail(rest.at, p.with(part{"", rest.at}, ":"), `":" and the destination ports must follow the host`)
	}
	if host.s == "" {
		return p.fail(host.at, "", "host and destination ports are missing")
	}
	return p.fail(rest.at, p.with(rest, ":443"), "the destination ports are missing after the host")
}
