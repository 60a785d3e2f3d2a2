package host

// Running is the pinproxy that has a network namespace.
type Running struct {
	PID    int    // 0: in another PID namespace, or not to be asked
	Socket string // path of its control socket; "" if it has told of none
	Silent bool   // it does not answer: it is stopped, or no pinproxy
}
