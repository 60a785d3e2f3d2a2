package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// LookPath finds a command as execvp(3) and shells do. A name with a slash is used as it is. Any other name is
// looked up in the directories of path, in which an empty entry is the working directory. exec.LookPath refuses what
// it finds there, but CMD is typed by the user, as in a shell.
//
// The error is [ErrNotFound], or an *[ExecError] if everything found may not be executed.
func LookPath(name, path string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("%q: %w", name, ErrNotFound)
	}
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := strings.TrimSuffix(dir, "/") + "/" + name
		if _, err := os.Stat(file); err != nil {
			continue // this includes directories that may not be searched
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if exec := (*ExecError)(nil); denied == nil && errors.As(err, &exec) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotFound)
}

func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &ExecError{file, fs.ErrPermission}
	case err != nil:
		return fmt.Errorf("%s: %w", file, ErrNotFound)
	case info.IsDir():
		return &ExecError{file, errors.New("is a directory")}
	}
	return mayExecute(file)
}
