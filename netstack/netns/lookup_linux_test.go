package netns

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/program": 0o755, "a/plain": 0o644, "b/plain": 0o755, "b/only": 0o644, "program": 0o755} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "a/folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	path := dir + "/none:" + dir + "/a/:" + dir + "/b:"
	for _, test := range []struct {
		name, want string
		denied     bool
	}{
		{"program", dir + "/a/program", false},
		{"plain", dir + "/b/plain", false}, // execvp continues the search
		{"only", "", true},
		{"folder", "", true},
		{"./program", "./program", false},
		{"a/plain", "", true},
		{"a", "", true}, // in the working directory, the last entry of PATH
		{"none", "", false},
		{"a/none", "", false},
		{"", "", false},
	} {
		got, err := LookPath(test.name, path)
		var exec *ExecError
		switch {
		case test.denied && !errors.As(err, &exec):
			t.Errorf("%q: %v, want that it can't be executed", test.name, err)
		case !test.denied && test.want == "" && !errors.Is(err, ErrNotFound):
			t.Errorf("%q: %q, %v; want that there is none", test.name, got, err)
		case test.want != "" && (got != test.want || err != nil):
			t.Errorf("%q: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}
