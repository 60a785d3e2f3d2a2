package main

import (
	"bytes"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestArguments(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"", "give the pinproxy to be measured"},
		{"a b", "give the pinproxy to be measured"},
		{"--rounds 0 a", "--rounds 0: give 1 to 1000"},
		{"--time 1h a", "--time 1h0m0s: give 1ms to 1m"},
		{"--flows 0 a", "--flows 0: give 1 to 50000"},
		{"--only latency,speed a", "--only speed: give some of throughput,connections,latency,beside,pinned,memory,gateway,flows"},
		{"--systems nobody a", "--systems nobody: give some of direct,pinproxy,"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(test.args), nil, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("bench %s: status %d, %q, want 2 and %q", test.args, code, &stderr, test.want)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, &stdout, &stderr); code != 0 || !strings.HasPrefix(stderr.String(), "usage: ") {
		t.Errorf("bench --help: status %d, %q", code, &stderr)
	}
}

func TestFigures(t *testing.T) {
	for _, test := range []struct {
		list           []float64
		median, spread float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 0},
		{[]float64{30, 10}, 20, 0.25},
		{[]float64{5, 1, 3, 2, 4}, 3, 1.0 / 3},
		{[]float64{100, 100, 100, 100, 1}, 100, 0},
	} {
		f := figureOf(test.list)
		if f.median != test.median || math.Abs(f.spread-test.spread) > 1e-9 || f.n != len(test.list) {
			t.Errorf("%v: %+v, want %v ± %v", test.list, f, test.median, test.spread)
		}
	}
}

// three returns figures of three systems; one of them fails in a round.
func three() *samples {
	s := &samples{Window: time.Second, Flows: 5000, Versions: map[string]string{"pasta": "1.2"}}
	for round, v := range [][3]float64{{60, 30, 10}, {40, 22, 11}, {50, 20, 5}} {
		for i, key := range []string{keyDirect, keyPinproxy, "pasta"} {
			x := sample{Round: round, System: key, Measure: "up1", Value: v[i]}
			if key == "pasta" && round == 1 {
				x.Value, x.Err = 0, "connection refused"
			}
			s.List = append(s.List, x)
		}
	}
	s.List = append(s.List,
		sample{System: keyPinproxy, Measure: "conn1", Value: 1234.5, Failed: 3},
		sample{System: "pasta", Measure: "conn1", Err: "connection refused"})
	return s
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	three().table(&b)
	const want = `
                      up 1  conn 1
                    Gbit/s     1/s

median
direct                50.0       –
pinproxy              22.0   1,234
pasta                 7.50  failed

spread
direct                ±10%       –
pinproxy              ±11%       –
pasta                 ±17%       –

pinproxy is … × what a system makes
direct                0.50       –
pinproxy                 –       –
pasta                 3.50       –

3 rounds of 1s each. Of CPU, p50, p99, beside and B/flow less is better, of the others more.

What went wrong, in all rounds:
  pinproxy, connections, 1 worker: 3 failed
  pasta, up, 1 flow; connections, 1 worker: connection refused
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &b, want)
	}
}

func TestPage(t *testing.T) {
	s := three()
	s.List = append(s.List,
		sample{System: keyPinproxy, Measure: "busyup1", Value: 8},
		sample{System: keyPinproxy, Measure: "busyup1000", Value: 6})
	text := s.page("x.svg")
	for _, want := range []string{
		"](x.svg)",
		"| **pinproxy** | – | – | 0.75 | – | – | – |\n",
		"| | direct | **pinproxy** | pasta |\n| --- | ---: | ---: | ---: |\n| up, 1 flow, Gbit/s | 50.0 | 22.0 | 7.50 |\n",
		"| up, 1 flow, Gbit/s | 0.50 | – | 3.50 |\n",
		"| connections, 1 worker, 1/s | – | 1,234 | failed |\n",
		"- pasta, up, 1 flow; connections, 1 worker: connection refused\n",
		"- **pasta 1.2**: its default MTU",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}

// A quantile between two values is interpolated.
func TestQuantile(t *testing.T) {
	list := []float64{10, 20, 40}
	for q, want := range map[float64]float64{0: 10, 0.25: 15, 0.5: 20, 0.75: 30, 1: 40} {
		if got := quantile(list, q); got != want {
			t.Errorf("%v of %v: %v, want %v", q, list, got, want)
		}
	}
}

// A ratio counts only rounds in which both systems have a figure, whatever the machine did in others.
func TestRatio(t *testing.T) {
	f := three().ratio(keyPinproxy, keyDirect, "up1") // 0.5, 0.55 and 0.4
	if math.Abs(f.median-0.5) > 1e-9 || f.n != 3 {
		t.Errorf("pinproxy to direct: %+v, want 0.5 of 3", f)
	}
	f = three().ratio(keyPinproxy, "pasta", "up1") // 3 and 4
	if math.Abs(f.median-3.5) > 1e-9 || f.n != 2 {
		t.Errorf("pinproxy to pasta: %+v, want 3.5 of 2", f)
	}
}

// Samples of several runs are combined if they were made in the same way.
func TestSamples(t *testing.T) {
	o := options{samples: filepath.Join(t.TempDir(), "samples"), window: time.Second, flows: 5000}
	if s, err := load(o); err != nil || s.rounds() != 0 {
		t.Errorf("no file: %+v, %v", s, err)
	}
	if err := three().save(o.samples); err != nil {
		t.Fatal(err)
	}
	if s := three(); s.failed("pasta", "up1", 0) != 1 || s.failed("pasta", "up1", 2) != 0 {
		t.Errorf("failed in all rounds, in the last: %d, %d, want 1, 0", s.failed("pasta", "up1", 0), s.failed("pasta", "up1", 2))
	}
	if s, err := load(o); err != nil || s.rounds() != 3 || s.ratio(keyPinproxy, "pasta", "up1").median != 3.5 {
		t.Errorf("what was saved: %+v, %v", s, err)
	}
	o.window = time.Minute
	if _, err := load(o); err == nil || !strings.HasSuffix(err.Error(), "was measured with --time 1s --flows 5000") {
		t.Errorf("other samples: %v", err)
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 9.994: "9.99", 9.996: "10.0", 99.94: "99.9", 99.96: "100", 999.6: "1,000", 1234567: "1,234,567"} {
		if got := number(figure{median: v, n: 1}); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
