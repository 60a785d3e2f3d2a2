package rules

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError says what is wrong with the text of one rule, and where.
type SyntaxError struct {
	Text   string // the rule as given
	Column int    // where in Text, in runes from 1; one past the end when something is missing there
	Msg    string // one sentence without a full stop
	Hint   string // the corrected rule, which parses, or "" if what was meant can't be told
	Source string // where the rule was written, "" when unknown
	Line   int    // line in Source, 0 when it has none
}

// Error returns the error on one line, "rules.conf:3:12: port 70000 is above 65535", without the hint.
func (e *SyntaxError) Error() string {
	switch {
	case e.Source == "":
		return fmt.Sprintf("rule %q, column %d: %s", e.Text, e.Column, e.Msg)
	case e.Line == 0:
		return fmt.Sprintf("%s %q, column %d: %s", e.Source, e.Text, e.Column, e.Msg)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.Source, e.Line, e.Column, e.Msg)
}

// tabWidth is the distance between a terminal's tab stops.
const tabWidth = 8

// Caret returns two lines without a final line break: the rule, and a caret under the spot. Tabs are expanded, and
// characters that would move a terminal's cursor are replaced, so that the caret is in the right place in any
// terminal, whatever the rule contains. If the rule would fill the screen, only the part around the spot is shown.
func (e *SyntaxError) Caret() string {
	var text, pad strings.Builder
	cells, column := 0, 1
	shown, spot := e.around()
	for _, r := range shown {
		width := cellWidth(r)
		switch {
		case r == '\t':
			width = tabWidth - cells%tabWidth
			text.WriteString(strings.Repeat(" ", width))
		case r == utf8.RuneError || !unicode.IsGraphic(r):
			// Control characters, and marks that change the direction of writing.
			text.WriteRune(utf8.RuneError)
			width = 1
		default:
			text.WriteRune(r)
		}
		if column < spot {
			pad.WriteString(strings.Repeat(" ", width))
		}
		cells += width
		column++
	}
	return text.String() + "\n" + pad.String() + "^"
}

// maxAround is how many characters Caret shows on either side of the spot.
const maxAround = 200

// around returns the part of Text that Caret shows, and the column in it.
func (e *SyntaxError) around() (shown []rune, column int) {
	text := []rune(e.Text)
	before, after := max(0, e.Column-1-maxAround), min(len(text), e.Column-1+maxAround)
	if before > 0 {
		shown = append(shown, '…')
	}
	shown = append(shown, text[before:after]...)
	if after < len(text) {
		shown = append(shown, '…')
	}
	return shown, e.Column - before + min(before, 1)
}

// wide holds the blocks whose characters take two cells of a terminal: East Asian Wide and Fullwidth of
// Unicode's EastAsianWidth.txt, rounded to whole blocks.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, // Hangul Jamo
		{0x2e80, 0x303e, 1}, // CJK radicals and punctuation
		{0x3041, 0xa4cf, 1}, // Kana, CJK ideographs, Yi
		{0xac00, 0xd7a3, 1}, // Hangul syllables
		{0xf900, 0xfaff, 1}, // CJK compatibility ideographs
		{0xfe30, 0xfe6f, 1}, // CJK compatibility and small forms
		{0xff00, 0xff60, 1}, // fullwidth forms
		{0xffe0, 0xffe6, 1}, // fullwidth signs
	},
	R32: []unicode.Range32{
		{0x1f300, 0x1f64f, 1}, // pictographs, emoticons
		{0x1f900, 0x1f9ff, 1}, // supplemental pictographs
		{0x20000, 0x3fffd, 1}, // CJK ideographs, extensions
	},
}

// cellWidth returns how many cells of a terminal r takes.
func cellWidth(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}
