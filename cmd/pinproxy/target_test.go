package main

import (
	"errors"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]string{
		"www.bank.example:443":  "www.bank.example:443",
		"WWW.Bank.Example.:443": "www.bank.example:443",
		"bücher.example:443":    "xn--bcher-kva.example:443",
		"203.0.113.2:1":         "203.0.113.2:1",
		"[2001:DB8::2]:65535":   "[2001:db8::2]:65535",
		"[::ffff:192.0.2.1]:80": "192.0.2.1:80",
	} {
		got, err := parseTarget(text)
		if err != nil || got.String() != want || got.Addr.IsValid() == (got.Name() != "") {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"https://old.example/":  `it begins with a host, not with "https://"`,
		"www.bank.example":      "the port is missing",
		"2001:db8::2:443":       "an IPv6 address stands in brackets",
		"www.bank.example:0":    "is not a port",
		"www.bank.example:http": "is not a port",
		"*.bank.example:443":    "a name or an address is needed",
		"*:443":                 "a name or an address is needed",
		"10.0.0.0/8:443":        "a name or an address is needed",
		"goo$gle:443":           "a name can't contain '$'",
		":443":                  "the host is missing",
		"0.0.0.0:443":           "no connection can be captured",
		"224.0.0.1:443":         "no connection can be captured",
	} {
		_, err := parseTarget(text)
		if _, ok := errors.AsType[*usageError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
