package rules

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"pinproxy/rules/typo"
)

// Bounds on the times in a rule. A time beyond them has the wrong unit.
const (
	minTime     = time.Millisecond
	maxWait     = time.Hour
	maxReclaim  = 24 * time.Hour
	maxCooldown = 24 * time.Hour
)

// optionNames returns the names of all options.
func optionNames() []string { return []string{"busy", "cooldown"} }

// wayNames returns the names of all ways, in the order of their constants.
func wayNames() []string {
	return []string{Wait.String(), Reclaim.String(), OtherAddress.String(), Any.String(), Fail.String()}
}

// isOption reports whether s is an option's name.
func isOption(s string) bool { return slices.Contains(optionNames(), s) }

// isWay reports whether s is a way of the busy option, perhaps with a duration.
func isWay(s string) bool {
	s, _, _ = strings.Cut(s, ":")
	return slices.Contains(wayNames(), s)
}

// option = "busy=" how { "," how } | "cooldown=" DURATION
func (p *parser) options(r *Rule, fields []part) *SyntaxError {
	r.busy = []Busy{{Wait, DefaultWait}}
	given := make(map[string]part)
	for _, field := range fields {
		i := strings.IndexByte(field.s, '=')
		if i < 0 {
			return p.bareOption(field, given["busy"])
		}
		name, value := field.cut(i, 1)
		if !isOption(name.s) {
			return p.unknownOption(name)
		}
		if before, ok := given[name.s]; ok {
			return p.fail(field.at, p.mergedBusy(before, field), "the option %q is given twice", name.s)
		}
		given[name.s] = field

		var err *SyntaxError
		switch name.s {
		case "busy":
			r.busy, err = p.busy(value)
		case "cooldown":
			r.cooldown, err = p.duration(value, 0, maxCooldown)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bareOption says what is wrong with an option that has no "=".
func (p *parser) bareOption(field, busy part) *SyntaxError {
	name, rest, _ := strings.Cut(field.s, ":")
	switch {
	case strings.HasPrefix(field.s, "#"):
		return p.fail(field.at, strings.TrimRight(p.text[:field.at], blanks), "a comment is part of a rules file only")
	case isWay(field.s) && busy.s != "":
		gap := part{p.text[busy.end():field.end()], busy.end()}
		return p.fail(field.at, p.with(gap, ","+field.s), `ways of "busy" are separated by ","`)
	case isWay(field.s):
		return p.fail(field.at, p.with(field, "busy="+field.s), `%q is a way of the option "busy"`, name)
	case isOption(name) && rest != "":
		return p.fail(field.at+len(name), p.with(field, name+"="+rest), `"=" stands between an option and its value, not ":"`)
	case name == "busy":
		return p.fail(field.end(), p.with(field, "busy=wait"), `the option "busy" lacks a way, such as "=wait"`)
	case name == "cooldown":
		return p.fail(field.end(), "", `the option "cooldown" lacks a duration, such as "=5s"`)
	}
	return p.unknownOption(part{name, field.at})
}

func (p *parser) unknownOption(name part) *SyntaxError {
	if strings.Contains(name.s, ":") {
		return p.fail(name.at, "", "another rule begins here; give each its own line or flag")
	}
	near := typo.Nearest(name.s, optionNames())
	if near == "" {
		return p.fail(name.at, "", `there is no option %q, only "busy" and "cooldown"`, name.s)
	}
	return p.fail(name.at, p.with(name, near), "there is no option %q, but %q", name.s, near)
}

// mergedBusy returns the rule with the ways from the second busy option added to the first.
func (p *parser) mergedBusy(first, second part) string {
	ways, ok := strings.CutPrefix(second.s, "busy=")
	if !ok {
		return ""
	}
	return strings.TrimRight(p.text[:first.end()]+","+ways+p.text[first.end():second.at], blanks) + p.text[second.end():]
}

// busy reads the ways, in the order in which they are tried.
func (p *parser) busy(list part) ([]Busy, *SyntaxError) {
	if list.s == "" {
		return nil, p.fail(list.at, p.with(list, "wait"), `a way is missing after "busy="`)
	}
	items := list.split(",")
	ways := make([]Busy, 0, len(items))
	for i, item := range items {
		if item.s == "" {
			return nil, p.fail(item.at, p.with(list, withoutEmpty(items)), `a way is missing beside ","`)
		}
		if item.s == "wait:0" || item.s == "wait:0s" {
			others := joinParts(slices.Delete(slices.Clone(items), i, i+1))
			return nil, p.fail(item.at+len("wait:"), p.with(list, cmp.Or(others, "fail")), `a wait of 0s is none; "fail" gives up at once`)
		}
		way, err := p.way(item)
		if err != nil {
			return nil, err
		}
		if j := slices.IndexFunc(ways, func(b Busy) bool { return b.Way == way.Way }); j >= 0 {
			others := slices.Delete(slices.Clone(items), i, i+1)
			return nil, p.fail(item.at, p.with(list, joinParts(others)), "the way %q is given twice", way.Way)
		}
		if i > 0 && (ways[i-1].Way == Any || ways[i-1].Way == Fail) {
			others := append(slices.Delete(slices.Clone(items), i-1, i), items[i-1])
			return nil, p.fail(item.at, p.with(list, joinParts(others)), "%q is never reached after %q", way.Way, ways[i-1].Way)
		}
		ways = append(ways, way)
	}
	return ways, nil
}

func joinParts(parts []part) string {
	var texts []string
	for _, part := range parts {
		texts = append(texts, part.s)
	}
	return strings.Join(texts, ",")
}

// how = "wait" [ ":" DURATION ] | "reclaim" [ ":" DURATION ] | "other-address" | "any" | "fail"
func (p *parser) way(item part) (Busy, *SyntaxError) {
	name, value, timed := item, part{}, false
	if i := strings.IndexByte(item.s, ':'); i >= 0 {
		name, value = item.cut(i, 1)
		timed = true
	} else if i := strings.IndexByte(item.s, '='); i >= 0 {
		return Busy{}, p.fail(item.at+i, p.with(part{"=", item.at + i}, ":"), `":" stands between a way and its duration, not "="`)
	}
	i := slices.Index(wayNames(), name.s)
	if i < 0 {
		near := typo.Nearest(name.s, wayNames())
		if near == "" {
			return Busy{}, p.fail(name.at, "", "there is no way %q, only %s", name.s, strings.Join(wayNames(), ", "))
		}
		return Busy{}, p.fail(name.at, p.with(name, near), "there is no way %q, but %q", name.s, near)
	}

	way := Way(i)
	if !timed {
		return Busy{way, way.defaultFor()}, nil
	}
	longest := maxWait
	switch way {
	case Wait:
	case Reclaim:
		longest = maxReclaim
	default:
		return Busy{}, p.fail(value.at, p.with(item, name.s), "the way %q has no duration", way)
	}
	if value.s == "" {
		return Busy{}, p.fail(value.at, p.with(item, name.s), `the duration is missing after ":"`)
	}
	d, err := p.duration(value, minTime, longest)
	return Busy{way, d}, err
}

// duration reads a duration in Go's syntax.
func (p *parser) duration(value part, shortest, longest time.Duration) (time.Duration, *SyntaxError) {
	if value.s == "" {
		return 0, p.fail(value.at, "", "the duration is missing")
	}
	d, err := time.ParseDuration(value.s)
	switch {
	case err != nil:
		return 0, p.fail(value.at, p.with(value, durationMeant(value.s)), "%q is not a duration, such as 500ms, 10s or 2m", value.s)
	case d < 0:
		return 0, p.fail(value.at, p.with(value, value.s[1:]), "the duration %s is negative", value.s)
	case d < shortest, d > 0 && d < minTime:
		return 0, p.fail(value.at, "", "the duration %s is shorter than %s", value.s, max(shortest, minTime))
	case d > longest:
		return 0, p.fail(value.at, "", "the duration %s is longer than %s", value.s, durationText(longest))
	}
	return d, nil
}

// durationMeant guesses the duration meant by one that is not in Go's syntax.
func durationMeant(s string) string {
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	switch unit := strings.ToLower(s[len(number):]); unit {
	case "", "sec", "secs", "second", "seconds", "s":
		return number + "s"
	case "min", "mins", "minute", "minutes", "m":
		return number + "m"
	case "hour", "hours", "h":
		return number + "h"
	case "msec", "ms":
		return number + "ms"
	case "d", "day", "days":
		if number == "1" {
			return "24h"
		}
	}
	return s
}
