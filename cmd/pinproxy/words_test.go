package main

import (
	"slices"
	"strings"
	"testing"
)

// Each hint was typed as it is on Ubuntu 24.04. The profile's name and file must not be those of another path: AppArmor
// follows none of two profiles that are for the same program.
func TestAppArmorHint(t *testing.T) {
	const all = "let every program make them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	for _, test := range []struct {
		path  string
		files []string
		want  string
	}{
		{"/usr/bin/pinproxy", []string{"/etc/apparmor.d/pinproxy"}, "sudo apparmor_parser -r /etc/apparmor.d/pinproxy; or " + all},
		{
			"/usr/local/bin/pinproxy", nil,
			"give /usr/local/bin/pinproxy a profile: echo 'abi <abi/4.0>, profile pinproxy /usr/{,local/}bin/pinproxy flags=(unconfined) { userns, }'" +
				" | sudo tee /etc/apparmor.d/pinproxy && sudo apparmor_parser -r /etc/apparmor.d/pinproxy; or " + all,
		},
		{
			"/home/ubuntu/my-bin/pinproxy",
			[]string{"/etc/apparmor.d/pinproxy"},
			"give /home/ubuntu/my-bin/pinproxy a profile: echo 'abi <abi/4.0>, profile home.ubuntu.my-bin.pinproxy /home/ubuntu/my-bin/pinproxy flags=(unconfined) { userns, }'" +
				" | sudo tee /etc/apparmor.d/home.ubuntu.my-bin.pinproxy && sudo apparmor_parser -r /etc/apparmor.d/home.ubuntu.my-bin.pinproxy; or " + all,
		},
		{
			"/home/ubuntu/my-bin/pinproxy",
			[]string{"/etc/apparmor.d/home.ubuntu.my-bin.pinproxy"},
			"sudo apparmor_parser -r /etc/apparmor.d/home.ubuntu.my-bin.pinproxy; or " + all,
		},
	} {
		if got := appArmorHint(test.path, func(path string) bool { return slices.Contains(test.files, path) }); got != test.want {
			t.Errorf("%s: the hint is\n%s, want\n%s", test.path, got, test.want)
		}
	}
	// Nothing of these is a command's or a profile's.
	for _, path := range []string{"pinproxy", "/home/o'neill/pinproxy", "/tmp/a b/pinproxy", "/tmp/{a,b}/pinproxy", "/tmp/*/pinproxy", "/tmp/#/pinproxy"} {
		if got := appArmorHint(path, func(string) bool { return false }); strings.Contains(got, path+" ") || !strings.HasSuffix(got, all) {
			t.Errorf("%s: the hint is %s", path, got)
		}
	}
}

// In a container sudo is no help to root.
func TestPrivilegeHint(t *testing.T) {
	if got := privilegeHint(0); strings.Contains(got, "sudo") || !strings.Contains(got, "--cap-add NET_ADMIN") {
		t.Error("root:", got)
	}
	if got := privilegeHint(1000); !strings.Contains(got, "sudo") || !strings.Contains(got, "as root") {
		t.Error("another user:", got)
	}
}
