package host

import (
	"errors"
	"net/netip"
	"slices"
)

// Linger makes the flows given, of hosts behind a gateway, from their source to their destination, go on entering
// the device whatever else is captured, in the place of those given before. This host's own flows need no such thing: they
// have the device's address. Those of other hosts look like any packet of theirs, so when Replace takes away what
// captured them, their packets would go past us to a server that knows nothing of them.
//
// An error leaves out some of the flows.
func (h *Host) Linger(flows [][2]netip.AddrPort) error {
	h.looking.Lock()
	defer h.looking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel == nil {
		return errUndone
	}
	want := make(map[rule]bool, len(flows))
	for _, f := range flows {
		if r := lingering(f[0], f[1]); h.on(r.fam) {
			want[r] = true
		}
	}
	var errs []error
	for _, fam := range []family{v4, v6} {
		if !h.on(fam) {
			continue
		}
		h.parts[fam] = slices.DeleteFunc(h.parts[fam], func(s Step) bool {
			r, ok := s.(rule)
			if !ok || r.pref != prefLinger {
				return false
			}
			if want[r] {
				delete(want, r)
				return false
			}
			err := h.kernel.undo(r)
			errs = append(errs, err)
			return err == nil
		})
	}
	for r := range want {
		if err := h.addRule(r); err != nil {
			errs = append(errs, err)
			continue
		}
		h.parts[r.fam] = append(h.parts[r.fam], r)
	}
	return errors.Join(errs...)
}
