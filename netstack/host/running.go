package host

// Running is the pinproxy that holds a network namespace.
type Running struct {
	PID    int    // 0: in another PID namespace, or not available
	Socket string // path of its control socket; "" if it has announced none
	Silent bool   // it does not answer: it is stopped, or is not a pinproxy
}
