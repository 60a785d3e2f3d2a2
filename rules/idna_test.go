package rules

import "testing"

func TestInternationalizedNames(t *testing.T) {
	tests := []struct{ rule, want string }{
		{"bücher.example:443=1", "xn--bcher-kva.example:443=1"},
		{"BÜCHER.Example.:443=1", "xn--bcher-kva.example:443=1"},
		{"bu\u0308cher.example:443=1", "xn--bcher-kva.example:443=1"}, // a combining diaeresis
		{"xn--bcher-kva.example:443=1", "xn--bcher-kva.example:443=1"},
		{"XN--Bcher-KVA.example:443=1", "xn--bcher-kva.example:443=1"},
		{"*.bücher.example:443=1", "*.xn--bcher-kva.example:443=1"},
		{"straße.example:443=1", "xn--strae-oqa.example:443=1"}, // IDNA 2008, not 2003
		{"例え。jp:443=1", "xn--r8jz45g.jp:443=1"},                 // an ideographic full stop
		{"ｗｗｗ.example:443=1", "www.example:443=1"},              // fullwidth letters
		{"_sip.bücher.example:443=1", "_sip.xn--bcher-kva.example:443=1"},
	}
	for _, tt := range tests {
		r, err := Parse(tt.rule)
		if err != nil {
			t.Errorf("%s: %v", tt.rule, err)
			continue
		}
		if r.String() != tt.want {
			t.Errorf("%s: printed %q, want %q", tt.rule, r, tt.want)
		}
	}
}

func TestInternationalizedNamesMalformed(t *testing.T) {
	testMalformed(t, []malformedRule{
		{"xn--a:443=1", 1, `"xn--a" is not an internationalized name: invalid label "\u0080"`, ""},
		{"bü$cher.example:443=1", 1, "a name can't contain '$'", ""},
		{"10.0.0.１:443=1", 1, `"10.0.0.１" is an address in other digits than 0 to 9`, "10.0.0.1:443=1"},
		{"例え。jp:443=70000", 11, "port 70000 is above 65535", ""},
		{"אa.example:443=1", 1, `"אa.example" is not an internationalized name: invalid label "אa.example"`, ""},
	})
}
