package monitor

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pinproxy/netstack/host"
	"pinproxy/proxy"
)

// maxRuleMetrics limits how many rules have metrics of their own. Rules that were never hit have none.
const maxRuleMetrics = 500

// exporter gives Prometheus what the parts count anyway: nothing is counted for it. The manual documents the names.
type exporter struct {
	m       *Monitor
	viewers func() int
}

// metric describes one metric.
func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pinproxy_"+name, help, labels, nil)
}

var (
	metricBuild     = metric("build_info", "Always 1.", "version", "goversion")
	metricCapturing = metric("capturing", "1 while connections are captured and the device is up, as /healthz says.")
	metricFlows     = metric("flows", "Flows in each stage now: arrived, waiting (for a source port), dialing, open.", "stage")
	metricArrived   = metric("flows_total", "Flows that came, of whatever fate.")
	metricEnded     = metric("flows_ended_total", "Flows that were connected and have ended.")
	metricFailed    = metric("flows_failed_total", "Flows that were not connected, by the kind of cause.", "cause")
	metricBytes     = metric("bytes_total", "Bytes carried: up is towards the destinations.", "direction")
	metricLeases    = metric("leases", "Source ports that flows have, each towards one destination.")
	metricWaiting   = metric("lease_waiting", "Flows in the queues for a source port.")
	metricReserved  = metric("reserved_ports", "Ports of pins that are in ip_local_reserved_ports.")
	metricRules     = metric("rules", "Rules in force.")
	metricNames     = metric("names", "Pairs of a name and an address that are known.")
	metricHits      = metric("rule_flows_total", "Flows that the rule was for.", "rule")
	metricRuleFail  = metric("rule_flows_failed_total", "Those of them that were not connected.", "rule")
	metricRuleNow   = metric("rule_flows", "Flows of the rule now: open, waiting (for a source port), dialing.", "rule", "stage")
	metricRuleBytes = metric("rule_bytes_total", "Bytes carried for the rule.", "rule", "direction")
	metricParked    = metric("netstack_parked", "SYNs that wait for an answer.")
	metricKnown     = metric("netstack_flows", "Connections that netstack knows, waiting ones too.")
	metricSYNs      = metric("netstack_syns_dropped_total", "SYNs dropped because too many waited.")
	metricQueries   = metric("dns_queries_total", "DNS queries over UDP from applications.")
	metricAnswers   = metric("dns_answers_total", "DNS answers over UDP to applications.")
	metricDropped   = metric("dns_queries_dropped_total", "DNS queries that there was no room for.")
	metricWithheld  = metric("dns_answers_withheld_total", "DNS answers replaced by SERVFAIL because no route could be set, or too many addresses waited for theirs.")
	metricViewers   = metric("page_viewers", "Browsers that show the page.")
)

// handler serves the metrics, including those of Go and of the process.
func (e *exporter) handler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(e, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Describe implements prometheus.Collector.
func (e *exporter) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		metricBuild, metricCapturing, metricFlows, metricArrived, metricEnded, metricFailed, metricBytes, metricLeases, metricWaiting,
		metricReserved, metricRules, metricNames, metricHits, metricRuleFail, metricRuleNow, metricRuleBytes, metricParked, metricKnown,
		metricSYNs, metricQueries, metricAnswers, metricDropped, metricWithheld, metricViewers,
	} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (e *exporter) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(metricBuild, 1, e.m.Version, runtime.Version())
	capturing := 0.0
	if e.m.ill() == nil {
		capturing = 1
	}
	gauge(metricCapturing, capturing)

	t := e.m.Pins.Totals()
	for stage, n := range t.Stages {
		gauge(metricFlows, float64(n), proxy.Stage(stage).String())
	}
	for _, kind := range proxy.Kinds() {
		count(metricFailed, t.Failed[kind], kind.String())
	}
	count(metricEnded, t.Ended)
	count(metricBytes, t.Up, "up")
	count(metricBytes, t.Down, "down")
	gauge(metricLeases, float64(t.Leases))
	gauge(metricWaiting, float64(t.Waiting))
	gauge(metricNames, float64(e.m.Names.Len()))
	gauge(metricViewers, float64(e.viewers()))

	s := e.m.Stack()
	count(metricArrived, s.Flows)
	gauge(metricParked, float64(s.Parked))
	gauge(metricKnown, float64(s.Open))
	count(metricSYNs, s.Dropped)
	d := e.m.DNS()
	count(metricQueries, d.Queries)
	count(metricAnswers, d.Answers)
	count(metricDropped, d.Dropped)
	count(metricWithheld, e.m.Withheld())
	e.collectRules(gauge, count)
}

// collectRules collects what each rule has counted.
func (e *exporter) collectRules(gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	set := e.m.Names.Set()
	list := set.Rules()
	gauge(metricRules, float64(len(list)))
	if facts, err := host.Look(e.m.Link); err == nil {
		gauge(metricReserved, float64(set.PinPorts().LenIn(facts.Reserved...)))
	}
	told := 0
	for i, n := range e.m.Pins.RuleStats(list) {
		if n.Hits == 0 {
			continue
		}
		if told++; told > maxRuleMetrics {
			break
		}
		rule := list[i].String()
		count(metricHits, n.Hits, rule)
		count(metricRuleFail, n.Failed, rule)
		count(metricRuleBytes, n.Up, rule, "up")
		count(metricRuleBytes, n.Down, rule, "down")
		gauge(metricRuleNow, float64(n.Stages[proxy.Open]), rule, "open")
		gauge(metricRuleNow, float64(n.Stages[proxy.Waiting]+n.Stages[proxy.Arrived]), rule, "waiting")
		gauge(metricRuleNow, float64(n.Stages[proxy.Dialing]), rule, "dialing")
	}
}
