package host

// HasIPv6 tells whether the network namespace of the calling thread has IPv6 by itself: a route beyond
// its links.
func HasIPv6() (bool, error) {
	r, err := openRTNL()
	if err != nil {
		return false, err
	}
	defer r.close()
	return hasIPv6(r, 0)
}
