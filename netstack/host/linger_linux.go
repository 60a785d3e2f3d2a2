package host

import (
	"errors"
	"net/netip"
	"slices"
)

// Linger keeps the given flows entering the device, from their source to their destination, whatever else is
// captured. The flows belong to hosts behind a gateway, and replace those of the previous call. This host's own
// flows don't need it, because they have the device's address. Flows of other hosts look like any other packets
// of those hosts. When Replace removes what captured them, their packets would pass us by and reach a server
// that does not know them.
//
// After an error some of the flows are missing.
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
			if !ok || !r.lingers() {
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
