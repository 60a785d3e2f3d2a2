package monitor

import (
	"net/netip"
	"time"

	"pinproxy/rules"
)

// What the control socket answers. The manual documents the fields, and scripts rely on them. Fields may be added,
// but are neither renamed nor given another meaning. Times are RFC 3339, durations are in seconds, addresses are as
// Go writes them.

// About is what a pinproxy is.
type About struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Link    string    `json:"link"`
	Strict  bool      `json:"strict"`
	Rules   []RuleRef `json:"rules"`

	Namespace string `json:"namespace,omitempty"` // see Namespace
	LowPorts  bool   `json:"low_ports"`           // it may bind any port
	Ending    bool   `json:"ending,omitempty"`    // it captures no new connections; what moves bytes may finish
}

// RuleRef is a rule and the place that it is from.
type RuleRef struct {
	Rule   string `json:"rule"`
	Source string `json:"source,omitempty"` // the rules file; absent on the command line
	Line   int    `json:"line,omitempty"`
}

// Status is everything at one moment.
type Status struct {
	About
	Now      time.Time         `json:"now"`
	Ended    uint64            `json:"ended"`  // flows since the start that were connected
	Failed   uint64            `json:"failed"` // flows since the start that were not
	Kinds    map[string]uint64 `json:"failed_kinds"`
	Up       uint64            `json:"up"`
	Down     uint64            `json:"down"`
	UpRate   float64           `json:"up_rate"` // bytes a second
	DownRate float64           `json:"down_rate"`
	Rules    []RuleState       `json:"rules"` // instead of About's
	Ports    []Port            `json:"ports"`
	Flows    []Flow            `json:"flows"`
	Failures []Failure         `json:"failures"`
	Names    []Name            `json:"names"`
	Process  Process           `json:"process"`

	list []*rules.Rule // of Rules, which may have changed a moment later
}

// RuleState is a rule and what it was for.
type RuleState struct {
	RuleRef
	Hits     uint64  `json:"hits"` // flows that the rule was for
	Failed   uint64  `json:"failed"`
	Open     int     `json:"open"`
	Waiting  int     `json:"waiting"` // including flows that have only arrived
	Dialing  int     `json:"dialing"`
	Up       uint64  `json:"up"`
	Down     uint64  `json:"down"`
	UpRate   float64 `json:"up_rate"`
	DownRate float64 `json:"down_rate"`
	Ports    int     `json:"ports"` // of the pin
	Free     int     `json:"free"`  // ports that nothing holds
}

// Flow is a flow as proxy.FlowInfo describes it.
type Flow struct {
	ID       uint64         `json:"id"`
	Stage    string         `json:"stage"`
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
	Upstream netip.AddrPort `json:"upstream"`
	Local    string         `json:"local"` // "" until it is connected
	Name     string         `json:"name,omitempty"`
	Rule     string         `json:"rule,omitempty"`
	Since    time.Time      `json:"since"`
	Idle     float64        `json:"idle"`
	Up       uint64         `json:"up"`
	Down     uint64         `json:"down"`
	UpRate   float64        `json:"up_rate"`
	DownRate float64        `json:"down_rate"`
	Cause    string         `json:"cause,omitempty"`
	Hint     string         `json:"hint,omitempty"`
}

// Failure is why flows of one kind were not connected, and how many.
type Failure struct {
	Rule  string         `json:"rule,omitempty"`
	Name  string         `json:"name,omitempty"`
	Dst   netip.AddrPort `json:"dst"`
	Kind  string         `json:"kind"`
	Cause string         `json:"cause"`
	Hint  string         `json:"hint,omitempty"`
	Times uint64         `json:"times"`
	First time.Time      `json:"first"`
	Last  time.Time      `json:"last"`
}

// Name is a name and an address that it is known to have.
type Name struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"address"`
	Expires time.Time  `json:"expires"`
	InUse   bool       `json:"in_use"`
}

// Process is what would grow if something were not released.
type Process struct {
	Goroutines int    `json:"goroutines"`
	Heap       uint64 `json:"heap"`      // bytes of objects, including those that the next collection frees
	Endpoints  int    `json:"endpoints"` // of netstack
}

// Destination is what would happen to a connection.
type Destination struct {
	Rule    string   `json:"rule,omitempty"` // the rule for the name that was asked about, or that a connection follows
	Name    string   `json:"name,omitempty"`
	Instead *Instead `json:"instead,omitempty"` // what a connection follows, if not Rule
	Pin     *Pin     `json:"pin,omitempty"`
}

// Instead is what decides about an address that is not known as that of the name that was asked about, or was
// last asked for by another name. Without a Rule, no rule does.
type Instead struct {
	Rule string `json:"rule,omitempty"`
	Name string `json:"name,omitempty"`
}

// Pin is the state of a pin's ports towards one destination.
type Pin struct {
	Held    []Held    `json:"held"`
	Resting []Resting `json:"resting"`
	Next    []uint16  `json:"next"`
	Used    []uint16  `json:"used,omitempty"`
	Waiting int       `json:"waiting"`
}

// Held is a port that a flow has.
type Held struct {
	Port  uint16    `json:"port"`
	Flow  uint64    `json:"flow"`
	Src   string    `json:"src,omitempty"`
	Since time.Time `json:"since"`
}

// Resting is a port that is not given out before Until (cooldown).
type Resting struct {
	Port  uint16    `json:"port"`
	Until time.Time `json:"until"`
}

// Seconds is a duration from one of the answers.
func Seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
