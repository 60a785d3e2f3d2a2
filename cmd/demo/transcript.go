package main

import (
	"fmt"
	"io"
	"strings"
)

// transcript is what the demo prints: numbered headings, commands behind a prompt, and their output.
type transcript struct {
	w     io.Writer
	steps int
}

// step begins a step.
func (t *transcript) step(format string, args ...any) {
	t.steps++
	fmt.Fprintf(t.w, "\n%d. %s\n\n", t.steps, fmt.Sprintf(format, args...))
}

// command shows a command line, after # for root and after $ for anybody else.
func (t *transcript) command(prompt string, words ...string) {
	for i, w := range words {
		words[i] = quote(w)
	}
	fmt.Fprintf(t.w, "   client%s %s\n", prompt, strings.Join(words, " "))
}

// output shows what a command printed, or what the demo has to say.
func (t *transcript) output(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "   %s\n", strings.TrimSuffix(line, "\n"))
	}
}

// fold breaks a long line at spaces.
func fold(line string) string {
	const width = 100
	var b strings.Builder
	column := 0
	for i, word := range strings.Split(line, " ") {
		switch {
		case i == 0:
		case column+1+len(word) > width:
			b.WriteString("\n    ")
			column = 4
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// quote quotes a word that the shell would split or expand.
func quote(word string) string {
	if word == "&" || !strings.ContainsAny(word, " *'\"$&;|<>[]()?!\\`~#") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
