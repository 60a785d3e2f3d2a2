package netns

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const head = "# By pinproxy, for this command: each name server stands for one of the host's.\n"

func TestRewriteResolvConf(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		servers          []string
	}{
		{"empty: the C library's default", "", head + "nameserver 192.0.0.53\n", []string{"127.0.0.1"}},
		{"systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n", head + "nameserver 192.0.0.53\noptions edns0 trust-ad\nsearch lan\n", []string{"127.0.0.53"}},
		{
			"three of both families", "nameserver 192.0.2.1\nnameserver 2001:db8::53\n nameserver\tfe80::1%eth0 \n",
			head + "nameserver 192.0.0.53\nnameserver 192.0.0.54\nnameserver 192.0.0.55\n",
			[]string{"192.0.2.1", "2001:db8::53", "fe80::1%eth0"},
		},
		{"comments, blanks, DOS, no final newline", "# a\n; b\n\n#nameserver 192.0.2.9\ndomain x.example\r\nnameserver ::ffff:192.0.2.1", head + "nameserver 192.0.0.53\ndomain x.example\n", []string{"192.0.2.1"}},
		{"not an address", "nameserver ns.example\nsortlist 192.0.2.0/255.255.255.0\n", head + "nameserver 192.0.0.53\nsortlist 192.0.2.0/255.255.255.0\n", []string{"127.0.0.1"}},
	} {
		var servers []string
		for _, a := range nameServers(test.text) {
			servers = append(servers, a.String())
		}
		if diff := cmp.Diff(test.servers, servers); diff != "" {
			t.Errorf("%s: name servers (-want +got):\n%s", test.name, diff)
		}
		if diff := cmp.Diff(test.want, rewriteResolvConf(test.text, len(servers))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestStandInsAreBounded(t *testing.T) {
	text := ""
	for range 100 {
		text += "nameserver 192.0.2.1\n"
	}
	list := standIns(len(nameServers(text)))
	if len(list) != maxResolvers {
		t.Errorf("%d stand-ins, want %d", len(list), maxResolvers)
	}
	for _, a := range list {
		if !StandIns.Contains(a) {
			t.Errorf("%v is not in StandIns", a)
		}
	}
}

func TestRewriteNsswitch(t *testing.T) {
	for text, want := range map[string]string{
		"hosts: files dns\n":      "hosts: files dns\n",
		"hosts:\tfiles  dns #x\n": "hosts:\tfiles  dns #x\n",
		"passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\nnetworks: files\n": "passwd: files systemd\nhosts: files myhostname dns\nnetworks: files\n",
		"hosts: files mdns4_minimal [NOTFOUND=return] dns mdns4\n":                                                   "hosts: files dns\n",
		"hosts: files [SUCCESS=merge] resolve [ !UNAVAIL=return SUCCESS=continue ] dns [NOTFOUND=return]":            "hosts: files [SUCCESS=merge] dns [NOTFOUND=return]\n",
		"hosts: resolve\n":       "hosts: dns\n",
		"hosts: wins files\n":    "hosts: files dns\n",
		"# hosts: resolve\n":     "# hosts: resolve\n",
		"publickey: resolve\n\n": "publickey: resolve\n\n",
		"":                       "",
	} {
		if got := rewriteNsswitch(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// A laptop changes networks while the command runs.
func TestResolversFollowTheHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string, at time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	write("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", now)
	r := NewResolvers(path)
	real := func(standIn string) string {
		t.Helper()
		a, ok := r.Real(netip.MustParseAddr(standIn))
		if !ok {
			return "none"
		}
		return a.String()
	}
	check := func(first, second string) {
		t.Helper()
		if a, b, c := real("192.0.0.53"), real("192.0.0.54"), real("192.0.0.55"); a != first || b != second || c != "none" {
			t.Errorf("stand-ins are for %s, %s and %s, want %s, %s and none", a, b, c, first, second)
		}
	}
	check("192.0.2.1", "192.0.2.2")
	write("nameserver 2001:db8::1\n", now.Add(time.Minute))
	check("192.0.2.1", "192.0.2.2") // not checked again so soon
	r.looked = r.looked.Add(-2 * rereadAfter)
	check("2001:db8::1", "2001:db8::1")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.looked = r.looked.Add(-2 * rereadAfter)
	check("2001:db8::1", "2001:db8::1") // the file is being rewritten
	if r := NewResolvers(path); len(r.servers) != 1 || r.servers[0].String() != "127.0.0.1" {
		t.Errorf("without a file the name servers are %v", r.servers)
	}
}
