package terminal

import "testing"

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"größe …":               "größe …",
		"\x1b[31mred\a\u009b":   "?[31mred??",
		"exe\u202egnp.x":        "exe?gnp.x", // the rest of the line would read backwards
		"a\u200bb\u2028c\ufeff": "a?b?c?",
	} {
		if got := Printable(text); got != want {
			t.Errorf("Printable(%q) = %q, want %q", text, got, want)
		}
	}
}
