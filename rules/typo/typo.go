// Package typo finds the word that was meant by a mistyped one.
package typo

import "strings"

// Nearest returns the name that begins with word, ignoring word's case. If not exactly one name begins so, it
// returns the name closest to word, which differs in at most two letters and in less than half of word's length. It
// returns "" if there is none.
func Nearest(word string, names []string) string {
	word = strings.ToLower(word)
	var longer []string
	best, changes := "", min(3, (len(word)+1)/2)
	for _, name := range names {
		if word != "" && strings.HasPrefix(name, word) {
			longer = append(longer, name)
		}
		if n := distance(word, name); n < changes {
			best, changes = name, n
		}
	}
	if len(longer) == 1 {
		return longer[0]
	}
	return best
}

// distance returns how many letters have to be inserted, deleted, replaced, or swapped with the next one, to turn a
// into b.
func distance(a, b string) int {
	var before []int // the row before last
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replace := last[j]
			if a[i] != b[j] {
				replace++
			}
			row[j+1] = min(replace, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
