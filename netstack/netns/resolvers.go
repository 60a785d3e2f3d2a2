package netns

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// firstStandIn is the first stand-in's address: in 192.0.0.0/24, which IANA keeps for protocols
// (RFC 6890), next to the device's own, and assigned to nothing.
var firstStandIn = netip.AddrFrom4([4]byte{192, 0, 0, 53})

// maxResolvers bounds the stand-ins; the C library looks at three.
const maxResolvers = 16

// StandIns has the addresses of all stand-ins.
var StandIns = netip.MustParsePrefix("192.0.0.0/25")

// ResolvConf and Nsswitch are the files that decide where a name is looked up.
const (
	ResolvConf = "/etc/resolv.conf"
	Nsswitch   = "/etc/nsswitch.conf"
	nscdSocket = "/var/run/nscd/socket"
)

// rereadAfter is how often the host's resolv.conf is looked at again while names are asked for:
// a laptop changes networks under a long command. The C library does the same.
const rereadAfter = time.Second

// Resolvers knows which name server of the host each stand-in stands for. Its methods are safe for
// concurrent use.
type Resolvers struct {
	path string
	conf string // for the command
	n    int    // stand-ins in it

	mu      sync.Mutex
	servers []netip.Addr // not empty
	written time.Time
	looked  time.Time
}

// NewResolvers reads the resolv.conf at path. A missing one means what it means to the C library:
// one name server, at 127.0.0.1.
func NewResolvers(path string) *Resolvers {
	r := &Resolvers{path: path}
	text := r.read(time.Now())
	r.n = len(r.servers)
	r.conf = rewriteResolvConf(text, r.n)
	return r
}

// read takes the file's name servers over. r.mu is held, or r not shared yet.
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

// Files are what the command is to see in place of the host's files.
func (r *Resolvers) Files() []File {
	files := []File{{Path: ResolvConf, Content: r.conf, Make: true}}
	if text, err := os.ReadFile(Nsswitch); err == nil {
		if own := rewriteNsswitch(string(text)); own != string(text) {
			files = append(files, File{Path: Nsswitch, Content: own})
		}
	}
	// nscd would ask for names outside; the C library does it by itself where nobody listens.
	if _, err := os.Stat(nscdSocket); err == nil {
		files = append(files, File{Path: nscdSocket})
	}
	return files
}

// Real returns the name server that addr stands for at present; false if addr is no stand-in.
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

// nameServers are those that text lists, or the C library's default.
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

// rewriteResolvConf returns text with n stand-ins for its name servers.
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

// detours are services that ask for names past port 53: systemd-resolved over a socket of its own,
// multicast DNS, systemd-machined, WINS. nss-myhostname stays: it asks nobody.
func detour(service string) bool {
	return service == "resolve" || service == "mymachines" || service == "wins" || strings.HasPrefix(service, "mdns")
}

// rewriteNsswitch returns text without the detours of its hosts line, and the actions
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
	skip, action := false, false // of the service before; inside brackets
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
