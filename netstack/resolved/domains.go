package resolved

import (
	"cmp"
	"slices"
	"strings"
)

// maxDomains is how many domains resolved accepts for an interface (LINK_SEARCH_DOMAINS_MAX; 1024 in later
// versions).
const maxDomains = 256

// fold returns names, sorted, without duplicates. If there are more than most, it leaves out those below another one.
// If more than most remain, the longest are cut to their parents, down to the top-level domains if necessary.
func fold(names []string, most int) []string {
	list := slices.Clone(names)
	slices.Sort(list)
	if list = slices.Compact(list); len(list) > most {
		list = minimal(list)
	}
	for len(list) > most {
		deepest := labels(slices.MaxFunc(list, func(a, b string) int { return cmp.Compare(labels(a), labels(b)) }))
		if deepest == 1 {
			return []string{""} // the root
		}
		for i, name := range list {
			if labels(name) == deepest {
				_, list[i], _ = strings.Cut(name, ".")
			}
		}
		list = minimal(list)
	}
	return list
}

// minimal returns names, sorted, without duplicates and without names below another one.
func minimal(names []string) []string {
	known := make(map[string]bool, len(names))
	for _, n := range names {
		known[n] = true
	}
	var list []string
	for n := range known {
		below := known[""] && n != ""
		for parent := n; !below; {
			_, rest, ok := strings.Cut(parent, ".")
			if !ok {
				break
			}
			parent = rest
			below = known[parent]
		}
		if !below {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// labels counts the labels of a name; the root has none.
func labels(name string) int {
	if name == "" {
		return 0
	}
	return strings.Count(name, ".") + 1
}

// within reports whether name is domain or below it.
func within(name, domain string) bool {
	if domain == "" {
		return true
	}
	rest, ok := strings.CutSuffix(name, domain)
	return ok && (rest == "" || strings.HasSuffix(rest, "."))
}

// subset reports whether each of names is in domains or below one of them.
func subset(names, domains []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool {
		return !slices.ContainsFunc(domains, func(d string) bool { return within(n, d) })
	})
}
