package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestState(t *testing.T) {
	path := StateFile(t.TempDir(), "17")
	if filepath.Base(path) != "pinproxy.17.state" || filepath.Base(StateFile("/run", "")) != "pinproxy.state" {
		t.Errorf("name: %s", path)
	}
	if s, err := readState(path); err != nil || s != (state{}) {
		t.Errorf("no file: %v, %v", s, err)
	}
	for _, want := range []state{{"boot", "1-2"}, {"boot", "5"}} {
		if err := writeState(path, want); err != nil {
			t.Fatal(err)
		}
		if got, err := readState(path); err != nil || got != want {
			t.Errorf("got %v, %v", got, err)
		}
	}
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(list) != 1 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	if err := writeState(filepath.Join(t.TempDir(), "missing", "x"), state{}); err == nil {
		t.Error("written into a missing directory")
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := readState(path); err == nil {
		t.Errorf("half a file: %v", s)
	}
}
