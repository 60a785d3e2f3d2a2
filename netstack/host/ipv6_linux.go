package host

// HasIPv6 reports whether the network namespace of the calling thread has IPv6 of its own: a route beyond its
// links.
func HasIPv6() (bool, error) {
	r, err := openRTNL()
	if err != nil {
		return false, err
	}
	defer r.close()
	return hasIPv6(r, 0)
}
