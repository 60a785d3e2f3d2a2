package rules

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Lengths of RFC 1035 section 2.3.4. A name of 255 octets on the wire has 253 in text: the length octets of the
// first label and of the root fall away.
const (
	maxLabel = 63
	maxName  = 253
)

// badName says what is wrong with a name, and at which byte offset. It also holds the name that was meant, if that
// can be told.
type badName struct {
	at    int
	msg   string
	meant string
}

// nameToASCII returns the form in which rules keep a name: A-labels (RFC 5890), lower-case, without a final dot.
func nameToASCII(name string) (string, *badName) {
	ascii := strings.ToLower(name)
	translated := strings.IndexFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0
	if translated || hasALabel(ascii) {
		var err error
		if ascii, err = toALabels(name); err != nil {
			return "", &badName{msg: fmt.Sprintf("%q is not an internationalized name: %s", name, strings.TrimPrefix(err.Error(), "idna: "))}
		}
	}
	ascii = strings.TrimSuffix(ascii, ".")

	at := 0
	for label := range strings.SplitSeq(ascii, ".") {
		bad := badLabel(label)
		if bad != nil {
			bad.at += at
			if translated {
				bad.at = 0 // offsets in A-labels mean nothing to a user who wrote U-labels
			}
			if label == "" {
				bad.meant = strings.Join(strings.FieldsFunc(ascii, func(r rune) bool { return r == '.' }), ".")
			}
			return "", bad
		}
		at += len(label) + 1
	}
	if len(ascii) > maxName {
		return "", &badName{msg: fmt.Sprintf("a name has at most %d characters, this one %d", maxName, len(ascii))}
	}
	return ascii, nil
}

func hasALabel(name string) bool {
	return strings.HasPrefix(name, "xn--") || strings.Contains(name, ".xn--")
}

func badLabel(label string) *badName {
	for i, r := range label {
		if !isLabelChar(r) {
			return &badName{at: i, msg: fmt.Sprintf("a name can't contain %q", r)}
		}
	}
	switch {
	case label == "":
		return &badName{msg: "a part of the name is empty"}
	case len(label) > maxLabel:
		return &badName{msg: fmt.Sprintf("a part of a name has at most %d characters, this one %d", maxLabel, len(label))}
	case label[0] == '-':
		return &badName{msg: "a part of a name can't begin with a hyphen"}
	case label[len(label)-1] == '-':
		return &badName{at: len(label) - 1, msg: "a part of a name can't end with a hyphen"}
	}
	return nil
}

func isLabelChar(r rune) bool {
	return 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

// canonical returns a name found in DNS in the form in which rules keep it: lower-case, without a final dot. It
// allocates only if the name is not in that form already.
func canonical(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			return lower(name)
		}
	}
	return name
}

// lower is strings.ToLower for ASCII only, as DNS compares names (RFC 4343).
func lower(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}
