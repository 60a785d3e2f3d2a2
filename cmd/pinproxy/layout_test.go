package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	checkout = "../.."
	module   = "pinproxy"
)

// Imports go one way. For each folder, this says which of our packages it may import. The first prefix that fits a
// folder decides.
var mayImport = []struct {
	folder string
	ours   []string // the folder itself, or everything below it if it ends with a /
}{
	{"cmd/pinproxy/check", []string{"cmd/pinproxy/monitor", "cmd/pinproxy/terminal", "netstack/host", "proxy", "proxy/sockdiag", "rules"}},
	{"cmd/pinproxy/identity", nil},
	{"cmd/pinproxy/monitor", []string{"cmd/pinproxy/terminal", "netstack", "netstack/", "proxy", "proxy/", "rules"}},
	{"cmd/pinproxy/terminal", nil},
	{"cmd/pinproxy", []string{"cmd/pinproxy/", "netstack", "netstack/", "proxy", "proxy/", "rules", "rules/"}},
	{"cmd", []string{"netstack", "netstack/", "proxy", "proxy/", "rules", "rules/"}},
	{"netstack", []string{"netstack", "netstack/"}},
	{"proxy/lease", []string{"rules"}},
	{"proxy/ping", []string{"proxy/udp"}},
	{"proxy/sockdiag", nil},
	{"proxy/udp", nil},
	{"proxy", []string{"rules", "proxy/lease", "proxy/sockdiag"}},
	{"rules", []string{"rules/typo"}},
}

// Folders that only tests and programs with throw-away networks may import.
var (
	forTests      = []string{"netstack/lab", "netstack/netstacktest"}
	throwAwayNets = []string{"cmd/bench", "cmd/demo"}
)

// Where third-party packages and net/http may be imported. A folder stands for everything below it. Anything else
// outside the standard library is one dependency too many: see docs/design.md.
var othersIn = []struct {
	pkg     string // and everything below it
	folders []string
	tests   []string // where tests may import it, too
}{
	{"gvisor.dev/gvisor", []string{"netstack"}, nil},
	{"github.com/songgao/water", []string{"netstack"}, nil},
	{"github.com/vishvananda/netlink", []string{"netstack/host", "netstack/netns", "netstack/lab", "proxy/sockdiag"}, []string{"netstack", "cmd"}},
	{"github.com/vishvananda/netns", []string{"netstack/lab"}, nil},
	{"github.com/google/nftables", []string{"netstack/lab"}, nil},
	{"github.com/spf13/pflag", []string{"cmd"}, nil},
	{"github.com/prometheus/client_golang", []string{"cmd"}, nil},
	{"github.com/godbus/dbus/v5", []string{"netstack/resolved"}, nil},
	{"net/http", []string{"cmd", "netstack/lab"}, nil},
	{"golang.org/x/sys", []string{"cmd", "netstack", "proxy"}, nil},
	{"golang.org/x/sync", []string{"cmd", "netstack", "proxy"}, nil},
	{"golang.org/x/net/dns/dnsmessage", []string{"netstack/dns", "netstack/lab"}, []string{"cmd"}},
	{"golang.org/x/net/idna", []string{"rules"}, nil},
	{"github.com/google/go-cmp", nil, []string{"cmd", "netstack", "proxy", "rules"}},
	{"github.com/rogpeppe/go-internal/testscript", nil, []string{"cmd"}},
	{"golang.org/x/tools/txtar", nil, []string{"cmd"}},
}

// linuxOnly may be imported only by Linux files in folders that are built everywhere.
const (
	linuxOnly   = "github.com/vishvananda/netlink"
	linuxOnlyIn = "proxy/sockdiag"
)

// topLevel is everything that a checkout has, besides names that begin with a dot and those in .gitignore.
var topLevel = strings.Fields("cmd netstack proxy rules docs packaging go.mod go.sum Makefile README.md LICENSE bin")

func TestLayoutTopLevel(t *testing.T) {
	entries, err := os.ReadDir(checkout)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !slices.Contains(topLevel, name) && !strings.HasPrefix(name, ".") && !slices.Contains([]string{".test", ".prof"}, path.Ext(name)) {
			t.Errorf("%s at the top level: that is fixed", name)
		}
	}
}

func TestLayoutImports(t *testing.T) {
	forEachGoFile(t, func(name string, file *ast.File) {
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if why := refuse(name, imported); why != "" {
				t.Errorf("%s imports %s: %s", name, imported, why)
			}
		}
	})
}

func TestLayoutNoInit(t *testing.T) {
	forEachGoFile(t, func(name string, file *ast.File) {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has a func init", name)
			}
		}
	})
}

// refuse says why the file may not import the package, or returns "" if it may.
func refuse(file, imported string) string {
	folder, isTest := path.Dir(file), strings.HasSuffix(file, "_test.go")
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		if slices.Contains(forTests, ours) {
			if isTest || slices.Contains(throwAwayNets, folder) || slices.Contains(forTests, folder) {
				return ""
			}
			return "that is for tests, " + strings.Join(throwAwayNets, " and ")
		}
		for _, m := range mayImport {
			if !within(m.folder, folder) {
				continue
			}
			for _, o := range m.ours {
				if o == ours || strings.HasSuffix(o, "/") && strings.HasPrefix(ours, o) {
					return ""
				}
			}
			if isTest && ours == folder {
				return "" // from its package x_test
			}
			return m.folder + " may import of ours only: " + strings.Join(m.ours, " ")
		}
		return "nothing is known of this folder"
	}
	for _, o := range othersIn {
		if !within(o.pkg, imported) {
			continue
		}
		is := func(f string) bool { return within(f, folder) }
		switch {
		case isTest && slices.ContainsFunc(o.tests, is):
			return ""
		case !slices.ContainsFunc(o.folders, is):
			return "that is for " + strings.Join(append(o.folders, o.tests...), ", ")
		case o.pkg == linuxOnly && within(linuxOnlyIn, folder) && !strings.Contains(path.Base(file), "_linux"):
			return "in " + linuxOnlyIn + " that is for Linux files"
		}
		return ""
	}
	if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
		return "a new dependency: say in docs/design.md what for, and here for whom"
	}
	return ""
}

// within reports whether path is parent or below it.
func within(parent, path string) bool {
	return path == parent || strings.HasPrefix(path, parent+"/")
}

// forEachGoFile calls f with each of our Go files, for any system, and its name in the checkout.
func forEachGoFile(t *testing.T, f func(name string, file *ast.File)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(checkout, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != checkout && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		short, err := filepath.Rel(checkout, name)
		if err != nil {
			return err
		}
		files++
		f(filepath.ToSlash(short), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Error("no Go files found")
	}
}

// The rules above are strict enough.
func TestLayoutRefuses(t *testing.T) {
	for _, test := range []struct {
		file, imported string
		fine           bool
	}{
		{"rules/x.go", "pinproxy/netstack", false},
		{"rules/x.go", "pinproxy/proxy/lease", false},
		{"rules/x_test.go", "pinproxy/rules", true},
		{"netstack/x.go", "pinproxy/rules", false},
		{"netstack/dns/x.go", "pinproxy/proxy", false},
		{"netstack/x_test.go", "pinproxy/proxy", false},
		{"netstack/x.go", "pinproxy/netstack/link", true},
		{"netstack/x.go", "pinproxy/netstack/lab", false},
		{"netstack/x_test.go", "pinproxy/netstack/lab", true},
		{"cmd/pinproxy/x.go", "pinproxy/netstack/lab", false},
		{"cmd/demo/x.go", "pinproxy/netstack/lab", true},
		{"cmd/bench/x.go", "pinproxy/netstack/lab", true},
		{"proxy/lease/x.go", "pinproxy/proxy", false},
		{"proxy/udp/x.go", "pinproxy/rules", false},
		{"proxy/udp/x.go", "pinproxy/netstack", false},
		{"proxy/ping/x.go", "pinproxy/proxy/udp", true},
		{"proxy/lease/x.go", "pinproxy/rules", true},
		{"proxy/x.go", "pinproxy/proxy/lease", true},
		{"proxy/x.go", "pinproxy/netstack", false},
		{"proxy/sockdiag/x_linux.go", "github.com/vishvananda/netlink/nl", true},
		{"proxy/sockdiag/x.go", "github.com/vishvananda/netlink", false},
		{"proxy/x.go", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"cmd/pinproxy/x.go", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"netstack/link/x.go", "gvisor.dev/gvisor/pkg/tcpip", true},
		{"netstack/x.go", "net/http", false},
		{"rules/x.go", "github.com/spf13/pflag", false},
		{"proxy/x.go", "github.com/prometheus/client_golang/prometheus", false},
		{"netstack/x_test.go", "github.com/google/nftables", false},
		{"rules/x.go", "github.com/google/go-cmp/cmp", false},
		{"rules/x_test.go", "github.com/google/go-cmp/cmp", true},
		{"cmd/pinproxy/x.go", "example.com/x", false},
		{"util/x.go", "pinproxy/rules", false},
	} {
		if why := refuse(test.file, test.imported); (why == "") != test.fine {
			t.Errorf("%s imports %s: refused because %q", test.file, test.imported, why)
		}
	}
}
