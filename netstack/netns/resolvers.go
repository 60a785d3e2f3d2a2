package netns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// firstStandIn is the address of the first stand-in. It is in 192.0.0.0/24, which IANA reserves for protocols
// (RFC 6890), next to the device's own address, and is assigned to nothing.
var firstStandIn = netip.AddrFrom4([4]byte{192, 0, 0, 53})

// maxResolvers bounds the number of stand-ins. The C library looks at three.
const maxResolvers = 16

// StandIns contains the addresses of all stand-ins.
var StandIns = netip.MustParsePrefix("192.0.0.0/25")

// ResolvConf and Nsswitch are the files that decide where a name is looked up.
const (
	ResolvConf = "/etc/resolv.conf"
	Nsswitch   = "/etc/nsswitch.conf"
	nscdSocket = "/var/run/nscd/socket"
)

// resolvConfDirs are where a resolv.conf that is a symbolic link usually leads, to a file that its owner replaces
// whenever the network changes.
var resolvConfDirs = []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"}

// rereadAfter is how often the host's resolv.conf is checked again while names are looked up: a laptop may change
// networks during a long command. The C library does the same.
const rereadAfter = time.Second

// Resolvers maps each stand-in to a name server of the host. Its methods are safe for concurrent use.
type Resolvers struct {
	path string
	conf string // for the command
	n    int    // number of stand-ins in conf

	mu      sync.Mutex
	servers []netip.Addr // not empty
	written time.Time
	looked  time.Time
}

// NewResolvers reads the resolv.conf at path. A missing file means the same as it does to the C library: one name
// server, at 127.0.0.1.
func NewResolvers(path string) *Resolvers {
	r := &Resolvers{path: path}
	text := r.read(time.Now())
	r.n = len(r.servers)
	r.conf = rewriteResolvConf(text, r.n)
	return r
}

// read replaces servers with the file's name servers. r.mu is held, or r is not shared yet.
func (r *Resolvers) read(now time.Time) string {
	r.looked = now
	info, err := os.Stat(r.path)
	if err == nil {
		r.written = info.ModTime()
	}
	text, err := os.ReadFile(r.path)
	if servers := nameServers(string(text)); err == nil || r.servers == nil {
		r.servers = servers
	}
	return string(text)
}

// Files returns the files that the command sees in place of the host's files.
func (r *Resolvers) Files() []File {
	files := []File{{Path: ResolvConf, Content: r.conf, Make: true, Dirs: resolvConfDirs}}
	if text, err := os.ReadFile(Nsswitch); err == nil {
		if own := rewriteNsswitch(string(text)); own != string(text) {
			files = append(files, File{Path: Nsswitch, Content: own})
		}
	}
	// nscd would look up names outside. If nobody listens on its socket, the C library looks them up itself. Whenever
	// nscd starts it makes a socket anew, but it keeps the directory.
	if _, err := os.Stat(filepath.Dir(nscdSocket)); err == nil {
		files = append(files, File{Path: nscdSocket, Alone: true})
	}
	return files
}

// Real returns the name server that addr currently stands for; false if addr is not a stand-in.
func (r *Resolvers) Real(addr netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(standIns(r.n), func(s netip.Addr) bool { return s == addr })
	if i < 0 {
		return netip.Addr{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.looked) > rereadAfter {
		r.looked = now
		if info, err := os.Stat(r.path); err == nil && !info.ModTime().Equal(r.written) {
			r.read(now)
		}
	}
	return r.servers[i%len(r.servers)], true
}

func standIns(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i, a := 0, firstStandIn; i < n; i, a = i+1, a.Next() {
		list[i] = a
	}
	return list
}

// nameServers returns the name servers that text lists, or the C library's default.
func nameServers(text string) (list []netip.Addr) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && len(list) < maxResolvers {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				list = append(list, a.Unmap())
			}
		}
	}
	if list == nil {
		list = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return list
}

// rewriteResolvConf returns text with its name servers replaced by n stand-ins.
func rewriteResolvConf(text string, n int) string {
	var b strings.Builder
	b.WriteString("# By pinproxy, for this command: each name server stands for one of the host's.\n")
	for _, a := range standIns(n) {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] != "nameserver" && !strings.HasPrefix(f[0], "#") && !strings.HasPrefix(f[0], ";") {
			b.WriteString(strings.TrimRight(line, "\r\n") + "\n")
		}
	}
	return b.String()
}

// detour reports whether a service looks up names without using port 53: systemd-resolved over its own socket,
// multicast DNS, systemd-machined, WINS. nss-myhostname stays: it sends no queries.
func detour(service string) bool {
	return service == "resolve" || service == "mymachines" || service == "wins" || strings.HasPrefix(service, "mdns")
}

// rewriteNsswitch returns text with the detours removed from its hosts line, together with the actions
// ("[NOTFOUND=return]") that belong to them.
func rewriteNsswitch(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		database, services, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(database) == "hosts" && slices.ContainsFunc(strings.Fields(services), detour) {
			line = database + ": " + withoutDetours(services) + "\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

func withoutDetours(services string) string {
	services, _, _ = strings.Cut(services, "#")
	var kept []string
	skip, action := false, false // the preceding service is a detour; inside brackets
	for _, f := range strings.Fields(strings.NewReplacer("[", " [ ", "]", " ] ").Replace(services)) {
		switch {
		case f == "[":
			action = true
		case !action:
			skip = detour(f)
		}
		if !skip {
			kept = append(kept, f)
		}
		action = action && f != "]"
	}
	if !slices.Contains(kept, "dns") {
		kept = append(kept, "dns")
	}
	return strings.NewReplacer("[ ", "[", " ]", "]").Replace(strings.Join(kept, " "))
}
