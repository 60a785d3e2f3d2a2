package typo

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"rule", "rules", "dial-timeout", "dry-run", "log-level", "log-format", "check", "status"}
	for word, want := range map[string]string{
		"ruel": "rule", "rul": "rule", "ruls": "rule", "rulez": "rule", "dial": "dial-timeout", "dialtimeout": "dial-timeout",
		"dryrun": "dry-run", "log": "", "log-leve": "log-level", "loglevel": "log-level", "chekc": "check", "statsu": "status", "stat": "status",
		"": "", "x": "", "nope": "", "verbose": "", "münchen": "",
	} {
		if got := Nearest(word, names); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
