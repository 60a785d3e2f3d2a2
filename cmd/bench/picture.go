package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// panel is a part of the picture: the bars of one measure, or of two that belong together.
type panel struct {
	title    string
	measures []string
	labels   []string // labels that tell the bars of a system apart
	most     float64  // that a bar shows; longer bars are cut, otherwise one system would make all others look alike
}

var panels = []panel{
	{"Throughput, 1 flow, Gbit/s", []string{"up1", "down1"}, []string{"up", "down"}, 0},
	{"Throughput, 8 flows, Gbit/s", []string{"up8", "down8"}, []string{"up", "down"}, 0},
	{"Behind a gateway, 1 flow, Gbit/s", []string{"gwup1", "gwdown1"}, []string{"up", "down"}, 0},
	{"Behind a gateway, 8 flows, Gbit/s", []string{"gwup8", "gwdown8"}, []string{"up", "down"}, 0},
	{"1 and 1,000 busy flows up, Gbit/s", []string{"busyup1", "busyup1000"}, []string{"1 flow", "1,000"}, 0},
	{"1 and 1,000 busy flows down, Gbit/s", []string{"busydown1", "busydown1000"}, []string{"1 flow", "1,000"}, 0},
	{"Connections a second", []string{"conn1", "conn16"}, []string{"1 worker", "16 workers"}, 0},
	{"Round trip of 64 bytes, µs (less is better)", []string{"p50", "p99"}, []string{"p50", "p99"}, 0},
	{"Round trip beside 8 flows of bulk data, p50, µs (less is better)", []string{"p50up8", "p50down8"}, []string{"uploads", "downloads"}, 50_000},
	{"Connections a second through one pinned port", []string{"pin", "pinplain"}, []string{"timestamps", "without"}, 0},
	{"Memory of an idle flow, bytes (less is better)", []string{"memory"}, []string{""}, 50_000},
}

// Sizes of the picture, in its own units.
const (
	panelWidth = 480
	labelWidth = 118
	valueWidth = 62
	barHeight  = 11
	rowHeight  = 2*barHeight + 7
	headHeight = 46
	margin     = 16
)

// style has colours for light and dark screens. The picture has its own background, so its text is readable
// anywhere.
const style = `
  .ground { fill: #ffffff } .line { stroke: #d0d7de }
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 13px } .dim { fill: #59636e } .value { font-size: 10px }
  .ours { font-weight: 600 }
  .a0 { fill: #0969da } .a1 { fill: #54aeff } .b0 { fill: #6e7781 } .b1 { fill: #afb8c1 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } .line { stroke: #3d444d }
    text { fill: #f0f6fc } .dim { fill: #9198a1 }
    .a0 { fill: #4493f8 } .a1 { fill: #1f4f95 } .b0 { fill: #8b949e } .b1 { fill: #484f58 }
  }
`

// picture draws the figures as SVG.
func (s *samples) picture() string {
	var body strings.Builder
	var heights [2]int // of the two columns
	for i, p := range panels {
		column := i % 2
		part, height := s.panel(p)
		fmt.Fprintf(&body, "<g transform=\"translate(%d %d)\">\n%s</g>\n", margin+column*(panelWidth+margin), margin+heights[column], part)
		heights[column] += height
		if column == 1 {
			heights[0], heights[1] = max(heights[0], heights[1]), max(heights[0], heights[1])
		}
	}
	width, height := 2*panelWidth+3*margin, max(heights[0], heights[1])+margin
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="pinproxy beside others">
<style>%s</style>
<rect class="ground" width="%d" height="%d" rx="6"/>
%s</svg>
`, width, height, width, height, style, width, height, body.String())
}

// panel draws one panel and returns its height.
func (s *samples) panel(p panel) (string, int) {
	var rows []kind
	top := 0.0
	for _, k := range s.ranking(measureOf(p.measures[0])) {
		if k.key == keyMany || k.key == keyTUN { // they are in the table
			continue
		}
		rows = append(rows, k)
		for _, m := range p.measures {
			top = max(top, s.figure(k.key, m).median)
		}
	}
	if p.most > 0 {
		top = min(top, p.most)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<text class=\"title\" y=\"12\">%s</text>\n", escape(p.title))
	x := labelWidth
	for i, label := range p.labels {
		if label != "" {
			fmt.Fprintf(&b, "<rect class=\"b%d\" x=\"%d\" y=\"22\" width=\"10\" height=\"10\"/><text class=\"dim value\" x=\"%d\" y=\"31\">%s</text>\n", i, x, x+14, escape(label))
			x += 24 + 7*len(label)
		}
	}
	for i, k := range rows {
		y := headHeight + i*rowHeight
		class, bar := "dim", "b"
		if emphasized(k) != k.title {
			class, bar = "ours", "a"
		}
		fmt.Fprintf(&b, "<text class=\"%s\" x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", class, labelWidth-8, y+barHeight+4, escape(k.title))
		for j, m := range p.measures {
			f := s.figure(k.key, m)
			if f.n == 0 || top == 0 {
				continue
			}
			length := min(f.median/top, 1) * (panelWidth - labelWidth - valueWidth)
			at := y + j*barHeight
			if len(p.measures) == 1 {
				at += barHeight / 2
			}
			fmt.Fprintf(&b, "<rect class=\"%s%d\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>", bar, j, labelWidth, at, max(length, 1), barHeight-1)
			if f.median > top {
				cut := labelWidth + 0.9*length
				fmt.Fprintf(&b, "<path class=\"ground\" d=\"M%.1f %d l4 0 l-6 %d l-4 0 z\"/>", cut, at-1, barHeight+1)
			}
			fmt.Fprintf(&b, "<text class=\"dim value\" x=\"%.1f\" y=\"%d\">%s</text>\n", labelWidth+max(length, 1)+4, at+barHeight-2, escape(number(f)))
		}
	}
	height := headHeight + len(rows)*rowHeight
	fmt.Fprintf(&b, "<line class=\"line\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", labelWidth, labelWidth, headHeight-4, height)
	return b.String(), height + margin
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // writing to a Builder never fails
	return b.String()
}
