package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cleanup removes what a killed pinproxy left in the network namespace of the calling thread, which l must be for:
// every rule and route with our protocol number, and the reserved ports listed in the state file in stateDir. It
// returns the lines a person would have typed, or none if there was nothing to do. The error joins everything that
// could not be repaired; the rest is done. The error is a *[DamagedError] if only the reserved ports could not be
// found, which does not prevent a start.
func (l *Lock) Cleanup(_ context.Context, stateDir string) (done []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	r, err := openRTNL()
	if err != nil {
		return nil, err
	}
	defer r.close()

	var errs []error
	try := func(lines []string, err error) {
		done = append(done, lines...)
		errs = append(errs, err)
	}
	for _, fam := range []family{v4, v6} {
		try(cleanRules(h, r, fam))
		try(cleanRoutes(r, fam))
	}
	lines, err := cleanReserved(stateDir)
	done = append(done, lines...)
	if joined := errors.Join(errs...); joined != nil {
		return done, errors.Join(joined, err)
	}
	return done, err
}

// cleanRules deletes the capture rules before the other rules, as undo does.
func cleanRules(h *netlink.Handle, r *rtnl, fam family) (done []string, err error) {
	list, err := ourRules(h, fam)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b netlink.Rule) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.Priority, a.Priority))
	})
	for _, found := range list {
		line := rule{fam: fam, pref: found.Priority}.Undo()
		if err := r.delRuleAt(fam, found.Priority); err != nil && !gone(err) {
			return done, explain(line, err)
		}
		done = append(done, line)
	}
	return done, nil
}

// rank orders rules for deletion: capture rules first, then others, then their jump targets.
func rank(r netlink.Rule) int {
	switch {
	case r.IifName != "" && r.Goto < 0:
		return 0
	case r.Priority != prefEnd:
		return 1
	}
	return 2
}

// cleanRoutes finds routes only if the device has outlived its process.
func cleanRoutes(r *rtnl, fam family) (done []string, err error) {
	var list []dest
	err = r.dumpRoutes(fam, 0, func(info routeInfo) {
		if info.protocol == Protocol {
			list = append(list, info.dest)
		}
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := r.delRoutes(list); err != nil {
		return nil, explain("delete routes", err)
	}
	for _, d := range list {
		done = append(done, d.del())
	}
	return done, nil
}

// cleanReserved releases the ports in the state file, and removes it.
func cleanReserved(stateDir string) (done []string, err error) {
	if stateDir == "" {
		return nil, nil
	}
	namespace, err := Namespace()
	if err != nil {
		return nil, err
	}
	path := StateFile(stateDir, namespace)
	removed, err := removeFile(unfinished(path)) // killed while it was written
	if err != nil {
		return nil, fmt.Errorf("remove state: %w", err)
	}
	if removed {
		done = []string{"rm " + unfinished(path)}
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return done, nil
	}
	r, err := openReserved(path)
	if err != nil {
		return done, fmt.Errorf("clean up reserved ports: %w", err)
	}
	defer r.close()
	released, err := r.remove(ports{})
	if err != nil || released.empty() {
		return done, err
	}
	now, err := r.ports()
	return append(done, sysctl{sysctlReserved, now.String()}.String()), err
}
