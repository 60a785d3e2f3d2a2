package rules

import (
	"errors"
	"testing"
)

// malformedRule is a rule that does not parse, with what the error says of it.
type malformedRule struct {
	rule   string
	column int
	msg    string
	hint   string
}

// malformed holds what people write, one mistake a line except in the last group.
var malformed = []malformedRule{
	// nothing, or not a rule
	{"", 1, "the rule is empty", ""},
	{"   ", 4, "the rule is empty", ""},
	{"# a comment", 1, "a comment is part of a rules file only", ""},
	{"a", 2, `"=" and the pin are missing after the destination`, ""},
	{"a:443", 6, `"=" and the pin are missing after the destination`, ""},
	{":", 2, `"=" and the pin are missing after the destination`, ""},
	{"=", 1, "host and destination ports are missing", ""},
	{"=63999", 1, "host and destination ports are missing", ""},
	{":443=63999", 1, "the host is missing", "*:443=63999"},
	{"busy=wait", 1, "the rule itself is missing before its options; put rule and options in one pair of quotes", ""},
	{"wait:10s", 1, "the rule itself is missing before its options; put rule and options in one pair of quotes", ""},
	{"a:443 busy=any", 6, `"=" and the pin are missing after the destination`, ""},

	// signs between the parts
	{"a=63999", 2, "the destination ports are missing after the host", "a:443=63999"},
	{"a:=63999", 3, "the destination ports are missing", "a:443=63999"},
	{"a:443=", 7, `the pin is missing after "="`, ""},
	{"a:443:63999", 6, `"=" stands between ports and pin, not ":"`, "a:443=63999"},
	{"a:443 63999", 6, `"=" is missing between ports and pin`, "a:443=63999"},
	{"a:443->63999", 6, `"=" stands between ports and pin, not "->"`, "a:443=63999"},
	{"a:443=>63999", 6, `"=" stands between ports and pin, not "=>"`, "a:443=63999"},
	{"a:443=63999=1", 12, `only one "=" stands between ports and pin`, ""},
	{"a:443=63999;busy=any", 12, "a blank stands before an option", "a:443=63999 busy=any"},
	{"a:443=63999cooldown=2s", 12, "a blank stands before an option", "a:443=63999 cooldown=2s"},
	{"a:8000:8010=63999", 7, `only one ":" stands between host and ports`, "a:8000-8010=63999"},
	{"[2001:db8::1]22=1022", 14, `":" and the destination ports must follow the host`, "[2001:db8::1]:22=1022"},
	{"[2001:db8::1]=1022", 14, "the destination ports are missing after the host", "[2001:db8::1]:443=1022"},
	{"a.example b.example:443=1", 10, "a blank may stand only before an option", ""},

	// blanks, quotes and what comes with copied text
	{"a:443 = 63999", 6, "a blank may stand only before an option", "a:443=63999"},
	{"a:443= 63999 busy= wait , any", 7, "a blank may stand only before an option", "a:443=63999 busy=wait,any"},
	{"\ta:443=\t63999", 8, "a blank may stand only before an option", "a:443=63999"},
	{`"a:443=63999"`, 1, "a quote is not part of a rule", "a:443=63999"},
	{"a:443='63999'", 7, "a quote is not part of a rule", "a:443=63999"},
	{"“a:443=63999”", 1, "a quote is not part of a rule", "a:443=63999"},
	{`\*.a:443=63999`, 1, "a backslash is not part of a rule", "*.a:443=63999"},
	{"a:443=63999\n", 12, "a line break is not part of a rule", ""},
	{"a:443=63999\nb:443=1", 12, "a line break is not part of a rule", ""},
	{"a:443=63999\u00a0busy=any", 12, "U+00A0 is not a plain space", "a:443=63999 busy=any"},
	{"a:443=\u200b63999", 7, "an invisible character, U+200B, is not part of a rule", "a:443=63999"},
	{"a:443=63999\x1b[0m", 12, "a control character, U+001B, is not part of a rule", ""},
	{"a:443=\xff", 7, "the rule is not valid UTF-8", ""},

	// URLs
	{"https://google.com:443=63999", 1, `a rule begins with a host, not with "https://"`, "google.com:443=63999"},
	{"https://google.com/=63999", 1, `a rule begins with a host, not with "https://"`, "google.com:443=63999"},
	{"https://[2001:db8::1]=63999", 1, `a rule begins with a host, not with "https://"`, "[2001:db8::1]:443=63999"},
	{"ssh://a/x=63999", 1, `a rule begins with a host, not with "ssh://"`, "a:22=63999"},
	{"foo://a=63999", 1, `a rule begins with a host, not with "foo://"`, "a:443=63999"},

	// names
	{"*google.com:443=1", 1, `a wildcard is "*." before a name, once`, "*.google.com:443=1"},
	{"*.*.google.com:443=1", 3, `a wildcard is "*." before a name, once`, "*.google.com:443=1"},
	{"a.*.google.com:443=1", 3, `a wildcard is "*." before a name, once`, ""},
	{"**:443=1", 1, `a wildcard is "*." before a name, once`, ""},
	{"*.:443=1", 3, `the name is missing after "*."`, ""},
	{"*.10.0.0.1:443=1", 3, `"10.0.0.1" is no name, and only names have a wildcard`, "10.0.0.1:443=1"},
	{".google.com:443=1", 1, "a name can't begin with a dot", "*.google.com:443=1"},
	{"google..com.:443=1", 8, "a part of the name is empty", "google.com:443=1"},
	{"google.com..:443=1", 12, "a part of the name is empty", "google.com:443=1"},
	{"goo$gle.com:443=1", 4, "a name can't contain '$'", ""},
	{"a@b.com:443=1", 2, "a name can't contain '@'", ""},
	{"-a.com:443=1", 1, "a part of a name can't begin with a hyphen", ""},
	{"a-.com:443=1", 2, "a part of a name can't end with a hyphen", ""},
	{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.example:443=1", 1, "a part of a name has at most 63 characters, this one 64", ""},
	{"google.com/24:443=1", 1, `"google.com" is no address, and only an address has a prefix length`, "google.com:443=1"},
	{"foo.1:443=1", 1, `"foo.1" is no address, and a name can't end in a number`, ""},

	// addresses
	{"10.0.0.256:443=1", 1, `"10.0.0.256" is not an IPv4 address`, ""},
	{"010.0.0.1:443=1", 1, `"010.0.0.1" is not an IPv4 address`, ""},
	{"10.0.1:443=1", 1, `"10.0.1" is not an IPv4 address`, ""},
	{"10.20.1.1/16:443=1", 1, "10.20.1.1/16 has bits set beyond its prefix length", "10.20.0.0/16:443=1"},
	{"10.20.0.0/33:443=1", 11, `an IPv4 prefix length is 0 to 32, not "33"`, ""},
	{"10.20.0.0/:443=1", 11, `the prefix length is missing after "/"`, ""},
	{"10.0.0.0/08:443=1", 10, "prefix length 08 begins with a zero", "10.0.0.0/8:443=1"},
	{"10.20.0.0/x:443=1", 11, `an IPv4 prefix length is 0 to 32, not "x"`, ""},
	{"10.0.0.0/255.0.0.0:443=1", 10, "255.0.0.0 is a mask, not a prefix length", "10.0.0.0/8:443=1"},
	{"10.0.0.0/255.0.255.0:443=1", 10, "255.0.255.0 is a mask, not a prefix length", ""},
	{"0.0.0.0:443=1", 1, "no connection goes to 0.0.0.0", "0.0.0.0/0:443=1"},
	{"224.0.0.1:443=1", 1, "no TCP connection goes to 224.0.0.1", ""},
	{"255.255.255.255:443=1", 1, "no TCP connection goes to 255.255.255.255", ""},
	{"2001:db8::1:443=63999", 1, "an IPv6 address stands in brackets", "[2001:db8::1]:443=63999"},
	{"2001:db8::1=63999", 1, "an IPv6 address stands in brackets", "[2001:db8::1]:443=63999"},
	{"2001:db8::/32:22=1022", 1, "an IPv6 address stands in brackets", "[2001:db8::/32]:22=1022"},
	{"[2001:db8::]/32:22=1022", 13, "the prefix length stands inside the brackets", "[2001:db8::/32]:22=1022"},
	{"[2001:db8::1:22=1022", 1, `"[" has no "]"`, "[2001:db8::1]:22=1022"},
	{"[2001:db8::1/129]:1=1", 14, `an IPv6 prefix length is 0 to 128, not "129"`, ""},
	{"[2001:db8::1/32]:1=1", 2, "2001:db8::1/32 has bits set beyond its prefix length", "[2001:db8::/32]:1=1"},
	{"[::]:443=1", 2, "no connection goes to ::", "[::/0]:443=1"},
	{"[ff02::1]:443=1", 2, "no TCP connection goes to ff02::1", ""},
	{"[fe80::1%eth0]:22=1", 9, `a rule's addresses have no zone, but here is "eth0"`, "[fe80::1]:22=1"},
	{"[::ffff:192.0.2.1]:22=1", 2, "::ffff:192.0.2.1 is an IPv4 address written as an IPv6 one", "192.0.2.1:22=1"},
	{"[::ffff:192.0.2.0/120]:22=1", 2, "::ffff:192.0.2.0 is an IPv4 address written as an IPv6 one", "192.0.2.0/24:22=1"},
	{"[10.0.0.1]:22=1022", 1, "only IPv6 addresses stand in brackets", "10.0.0.1:22=1022"},
	{"[google.com]:22=1022", 2, `"google.com" is not an IPv6 address`, "google.com:22=1022"},
	{"[]:22=1", 2, "the address is missing", ""},

	// ports
	{"a:0=63999", 3, "port 0 does not exist", ""},
	{"a:443=0", 7, "port 0 does not exist", ""},
	{"a:65536=1", 3, "port 65536 is above 65535", ""},
	{"a:99999999999999999999999=1", 3, "port 99999999999999999999999 is above 65535", ""},
	{"a:443=70000", 7, "port 70000 is above 65535", ""},
	{"a:8010-8000=1", 3, "the range 8010-8000 runs backwards", "a:8000-8010=1"},
	{"a:-8000=1", 3, `the first port of the range is missing before "-"`, ""},
	{"a:8000-=1", 8, `the last port of the range is missing after "-"`, "a:8000=1"},
	{"a:1-2-3=4", 5, `"2-3" is not a port number`, ""},
	{"a:443,443=1", 7, "443 is listed twice", "a:443=1"},
	{"a:443,440-450=1", 7, "440-450 overlaps 443: both have port 443", "a:440-450=1"},
	{"a:440-450,1,443=1", 13, "443 overlaps 440-450: both have port 443", "a:1,440-450=1"},
	{"a:*,443=1", 3, `"*" already is every port`, "a:*=1"},
	{"a:443,*=1", 7, `"*" already is every port`, "a:*=1"},
	{"a:443,,80=63999", 7, `a port is missing beside ","`, "a:443,80=63999"},
	{"a:443=63999,", 13, `a port is missing beside ","`, "a:443=63999"},
	{"a:443;80=63999", 6, `ports are separated by ",", not by ";"`, "a:443,80=63999"},
	{"a:0443=1", 3, "port 0443 begins with a zero", "a:443=1"},
	{"a:https=63999", 3, `"https" is not a port number`, "a:443=63999"},
	{"a:443/tcp=63999", 3, `"443/tcp" is not a port number`, "a:443=63999"},
	{"a:8000..8010=63999", 3, `"8000..8010" is not a port number`, "a:8000-8010=63999"},
	{"a:4x3=1", 3, `"4x3" is not a port number`, ""},
	{"a:443=63999x", 7, `"63999x" is not a port number`, ""},
	{"a:443=1,1", 9, "1 is listed twice", "a:443=1"},
	{"a:443=10-20,15-30", 13, "15-30 overlaps 10-20: both have port 15", "a:443=10-30"},
	{"a:443=*", 7, `a pin names its source ports, "*" names none`, ""},

	// pins with an address
	{"a:443=*:63999", 7, `without a source address the pin has no ":"`, "a:443=63999"},
	{"a:443=:63999", 7, `without a source address the pin has no ":"`, "a:443=63999"},
	{"a:443=63990:63999", 7, `"63990:63999" is not a port number`, "a:443=63990-63999"},
	{"a:443=192.0.2.1", 16, "the pin's source port is missing after its address", ""},
	{"a:443=192.0.2.1:", 17, "the pin's source port is missing", ""},
	{"a:443=192.0.2.300:63999", 7, `"192.0.2.300" is not an IPv4 address`, ""},
	{"a:443=192.0.2.0/24:63999", 16, "a pin has one source address, not a prefix of them", "a:443=192.0.2.0:63999"},
	{"a:443=[192.0.2.1]:63999", 7, "only IPv6 addresses stand in brackets", "a:443=192.0.2.1:63999"},
	{"a:443=localhost:63999", 7, `"localhost" is no address`, ""},
	{"a:443=0.0.0.0:63999", 7, "0.0.0.0 is no source address; leave it out to use any", "a:443=63999"},
	{"a:443=224.0.0.1:63999", 7, "nothing can be sent from 224.0.0.1", ""},
	{"a:443=2001:db8::1:63999", 7, "an IPv6 address stands in brackets", "a:443=[2001:db8::1]:63999"},
	{"a:443=2001:db8::1", 18, "the pin's source port is missing after its address", ""},
	{"a:443=[2001:db8::1]", 20, "the pin's source port is missing after its address", ""},
	{"a:443=[2001:db8::1:63999", 7, `"[" has no "]"`, "a:443=[2001:db8::1]:63999"},
	{"a:443=[fe80::1]:63999", 8, "the link-local address fe80::1 needs a zone, which rules don't have", ""},
	{"a:443=[fe80::1%eth0]:63999", 15, `a rule's addresses have no zone, but here is "eth0"`, ""},
	{"a:443=[::ffff:192.0.2.1]:63999", 8, "::ffff:192.0.2.1 is an IPv4 address written as an IPv6 one", "a:443=192.0.2.1:63999"},
	{"10.0.0.0/8:443=[2001:db8::1]:63999", 17, "no connection to 10.0.0.0/8 leaves from 2001:db8::1", "10.0.0.0/8:443=63999"},
	{"[2001:db8::/32]:443=192.0.2.1:63999", 21, "no connection to [2001:db8::/32] leaves from 192.0.2.1", "[2001:db8::/32]:443=63999"},

	// options
	{"a:443=1 bussy=any", 9, `there is no option "bussy", but "busy"`, "a:443=1 busy=any"},
	{"a:443=1 Busy=any", 9, `there is no option "Busy", but "busy"`, "a:443=1 busy=any"},
	{"a:443=1 foo=any", 9, `there is no option "foo", only "busy" and "cooldown"`, ""},
	{"a:443=1 foo", 9, `there is no option "foo", only "busy" and "cooldown"`, ""},
	{"a:443=1 busy", 13, `the option "busy" lacks a way, such as "=wait"`, "a:443=1 busy=wait"},
	{"a:443=1 busy=", 14, `a way is missing after "busy="`, "a:443=1 busy=wait"},
	{"a:443=1 busy=wait,", 19, `a way is missing beside ","`, "a:443=1 busy=wait"},
	{"a:443=1 busy:wait", 13, `"=" stands between an option and its value, not ":"`, "a:443=1 busy=wait"},
	{"a:443=1 wait:10s", 9, `"wait" is a way of the option "busy"`, "a:443=1 busy=wait:10s"},
	{"a:443=1 busy=wait any", 19, `ways of "busy" are separated by ","`, "a:443=1 busy=wait,any"},
	{"a:443=1 busy=wait busy=any", 19, `the option "busy" is given twice`, "a:443=1 busy=wait,any"},
	{"a:443=1 cooldown=1s busy=wait cooldown=2s", 31, `the option "cooldown" is given twice`, ""},
	{"a:443=1 cooldown", 17, `the option "cooldown" lacks a duration, such as "=5s"`, ""},
	{"a:443=1 cooldown=", 18, "the duration is missing", ""},
	{"a:443=1 cooldown:5s", 17, `"=" stands between an option and its value, not ":"`, "a:443=1 cooldown=5s"},
	{"a:443=1 # comment", 9, "a comment is part of a rules file only", "a:443=1"},
	{"a:443=1 b:443=2", 9, "another rule begins here; give each its own line or flag", ""},

	// ways
	{"a:443=1 busy=wait,wait:1s", 19, `the way "wait" is given twice`, "a:443=1 busy=wait"},
	{"a:443=1 busy=fail,wait", 19, `"wait" is never reached after "fail"`, "a:443=1 busy=wait,fail"},
	{"a:443=1 busy=any,fail", 18, `"fail" is never reached after "any"`, ""},
	{"a:443=1 busy=wiat", 14, `there is no way "wiat", but "wait"`, "a:443=1 busy=wait"},
	{"a:443=1 busy=other_address", 14, `there is no way "other_address", but "other-address"`, "a:443=1 busy=other-address"},
	{"a:443=1 busy=reject", 14, `there is no way "reject", only wait, reclaim, other-address, any, fail`, ""},
	{"a:443=1 busy=any:10s", 18, `the way "any" has no duration`, "a:443=1 busy=any"},
	{"a:443=1 busy=wait=10s", 18, `":" stands between a way and its duration, not "="`, "a:443=1 busy=wait:10s"},

	// durations
	{"a:443=1 busy=wait:", 19, `the duration is missing after ":"`, "a:443=1 busy=wait"},
	{"a:443=1 busy=wait:10", 19, `"10" is not a duration, such as 500ms, 10s or 2m`, "a:443=1 busy=wait:10s"},
	{"a:443=1 busy=wait:10min", 19, `"10min" is not a duration, such as 500ms, 10s or 2m`, "a:443=1 busy=wait:10m"},
	{"a:443=1 busy=wait:-10s", 19, "the duration -10s is negative", "a:443=1 busy=wait:10s"},
	{"a:443=1 busy=wait:0s", 19, `a wait of 0s is none; "fail" gives up at once`, "a:443=1 busy=fail"},
	{"a:443=1 busy=wait:0s,any", 19, `a wait of 0s is none; "fail" gives up at once`, "a:443=1 busy=any"},
	{"a:443=1 busy=wait:2h", 19, "the duration 2h is longer than 1h", ""},
	{"a:443=1 busy=wait:1ns", 19, "the duration 1ns is shorter than 1ms", ""},
	{"a:443=1 busy=reclaim:0", 22, "the duration 0 is shorter than 1ms", ""},
	{"a:443=1 cooldown=-1s", 18, "the duration -1s is negative", "a:443=1 cooldown=1s"},
	{"a:443=1 cooldown=1d", 18, `"1d" is not a duration, such as 500ms, 10s or 2m`, "a:443=1 cooldown=24h"},
	{"a:443=1 cooldown=48h", 18, "the duration 48h is longer than 24h", ""},
	{"a:443=1 cooldown=soon", 18, `"soon" is not a duration, such as 500ms, 10s or 2m`, ""},

	// several mistakes in one: the hint corrects them all
	{"https://Google.com = 63999", 19, "a blank may stand only before an option", "Google.com:443=63999"},
	{"2001:db8::1/32:https=192.0.2.1:0063999 bussy=any,wait:10min", 1, "an IPv6 address stands in brackets", "[2001:db8::/32]:443=63999 busy=wait:10m,any"},
}

func TestParseMalformed(t *testing.T) { testMalformed(t, malformed) }

func testMalformed(t *testing.T, tests []malformedRule) {
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			r, err := Parse(tt.rule)
			if err == nil {
				t.Fatalf("Parse(%q) = %q, want an error", tt.rule, r)
			}
			var syntax *SyntaxError
			if !errors.As(err, &syntax) {
				t.Fatalf("Parse(%q): %T, want *SyntaxError", tt.rule, err)
			}
			if syntax.Text != tt.rule {
				t.Errorf("Text is %q, want the rule, %q", syntax.Text, tt.rule)
			}
			if syntax.Column != tt.column || syntax.Msg != tt.msg || syntax.Hint != tt.hint {
				t.Errorf("got  column %d, %q, hint %q\nwant column %d, %q, hint %q",
					syntax.Column, syntax.Msg, syntax.Hint, tt.column, tt.msg, tt.hint)
			}
			if tt.hint == "" {
				return
			}
			if _, err := Parse(tt.hint); err != nil {
				t.Errorf("the hint does not parse: %v", err)
			}
		})
	}
}
