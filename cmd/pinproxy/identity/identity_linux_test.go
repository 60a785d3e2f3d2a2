package identity

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A user is known if one of the map's lines has it. The size of the first line's range is more than an int of 32 bits can
// hold.
func TestInMap(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uid_map")
	for text, known := range map[string]map[int]bool{
		"         0          0 4294967295\n":                              {0: true, 65534: true, 1 << 30: true},
		"         0       1000          1\n         1     100000 65536\n": {0: true, 1: true, 65536: true, 65537: false},
		"      1000       1000          1\n":                              {0: false, 999: false, 1000: true, 1001: false},
		"":                                                                {0: false},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for id, want := range known {
			if got := inMap(file, id); got != want {
				t.Errorf("%q: %d: %v", text, id, got)
			}
		}
	}
	if !inMap(filepath.Join(t.TempDir(), "uid_map"), 1) {
		t.Error("without a map the system calls are to tell")
	}
}

// A user may be in groups that the user namespace does not know.
func TestGroupsIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gid_map")
	if err := os.WriteFile(file, []byte("         0          0       1000\n     65534      65534          1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := groupsIn(file, []string{"65534", "1", "5000", "1", "none"}), []int{65534, 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
