package main

import (
	"log/slog"
	"net"
	"strings"
	"testing"
)

func TestParseHTTP(t *testing.T) {
	for value, want := range map[string]string{
		"8080": "127.0.0.1:8080", ":8080": "127.0.0.1:8080", "localhost:8080": "127.0.0.1:8080", "[::1]:8080": "[::1]:8080",
		"0.0.0.0:80": "0.0.0.0:80", "198.51.100.2:9090": "198.51.100.2:9090", "gate.bank.example:9090": "gate.bank.example:9090",
	} {
		if got, err := parseHTTP(value); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", value, got, err, want)
		}
	}
	for value, want := range map[string]string{
		"": "is no ADDRESS:PORT", "localhost": "is no ADDRESS:PORT", "::1:8080": "is no ADDRESS:PORT", ":http": `"http" is no port`,
		":0": `"0" is no port`, ":65536": `"65536" is no port`, "*:8080": "say 0.0.0.0 or [::]", "http://127.0.0.1:8080": "is no ADDRESS:PORT",
	} {
		if got, err := parseHTTP(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %q", value, got, err, want)
		}
	}
}

// An IPv4 address means IPv4 only: 0.0.0.0 opens nothing to IPv6.
func TestListenHTTPFamily(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "127.0.0.1:0"} {
		l, err := listenHTTP(t.Context(), options{http: addr}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := l.Addr().(*net.TCPAddr); !ok || a.IP.To4() == nil {
			t.Errorf("%s listens on %v", addr, l.Addr())
		}
		_ = l.Close()
	}
}
