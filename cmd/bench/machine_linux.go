package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes the machine that all this runs on.
func machine() string {
	var u unix.Utsname
	release := "?"
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d processors (%s), Linux %s, %s.", runtime.NumCPU(), runtime.GOARCH, release, runtime.Version())
}

var (
	versionNumber = regexp.MustCompile(`^v\d+\.\d+\.\d+`)                                     // of a Go module
	versionWords  = regexp.MustCompile(`(?i)\b(?:version|pasta|nftables) v?(\d+\.[-+~.\w]*)`) // not that of a licence
)

// version returns the version that a peer reports, or what Go knows of how it was built. It returns "" if neither
// helps.
func version(k kind, path string) string {
	if k.program == "" {
		return ""
	}
	if info, err := buildinfo.ReadFile(path); err == nil {
		modules := append(info.Deps, &info.Main)
		for _, m := range modules {
			if strings.HasPrefix(info.Path+"/", m.Path+"/") && versionNumber.MatchString(m.Version) {
				return versionNumber.FindString(m.Version)
			}
		}
	}
	flag := "--version"
	switch k.program {
	case "socat":
		flag = "-V"
	case "haproxy":
		flag = "-v"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, path, flag).CombinedOutput() // it may not know the flag
	if m := versionWords.FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return ""
}
