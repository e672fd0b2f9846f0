package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// A panel of the charts: one metric, bars in groups of targets for each case.
type panel struct {
	title, metric string
	cases         []string
	targets       []string
}

var colors = map[string]string{
	directTarget:    "#b0b7c3",
	pgbouncerTarget: "#3b6ea5",
	sidecarTarget:   "#e07a2f",
}

const (
	panelWidth  = 380
	panelHeight = 250
	margin      = 46
	headRoom    = 78
)

// charts draws what the bars are about. The same results give the same bytes.
func charts(r *results, m machine) []byte {
	poolers := []string{pgbouncerTarget, sidecarTarget}
	everybody := []string{directTarget, pgbouncerTarget, sidecarTarget}
	var panels []panel
	for _, kind := range []struct{ name, long string }{
		{short["simple"], "simple"}, {short["extended"], "extended"}, {short["prepared"], "prepared"}, {overTLS, "TLS to the server"},
	} {
		long := kind.long
		var cases []string
		for _, clients := range []string{"1", "16", "64", "200"} {
			cases = append(cases, kind.name+"-"+clients)
		}
		if !r.has(cases[0]) {
			continue
		}
		panels = append(panels,
			panel{"CPU of the pooler, µs per transaction, " + long, cpuMetric, cases, poolers},
			panel{"transactions per second, " + long, tpsMetric, cases, everybody},
			panel{"p99 latency, ms, " + long, p99Metric, cases, poolers})
	}
	panels = append(panels,
		panel{"logins per second", loginsMetric, []string{stormCase}, everybody},
		panel{"large result, MB/s", rateMetric, []string{largeCase}, everybody},
		panel{"resident bytes per idle client", perClientMetric, []string{memoryCase}, poolers})

	const columns = 3
	rows := (len(panels) + columns - 1) / columns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		columns*panelWidth, rows*panelHeight+headRoom)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	text(&b, margin, 20, "start", m.hardware())
	text(&b, margin, 38, "start", m.software())
	x := margin
	for _, target := range everybody {
		fmt.Fprintf(&b, `<rect x="%d" y="50" width="12" height="12" fill="%s"/>`+"\n", x, colors[target])
		text(&b, x+17, 60, "start", target)
		x += 110
	}
	text(&b, x, 60, "start", "medians; groups are numbers of clients")
	for i, p := range panels {
		p.draw(&b, r, i%columns*panelWidth, headRoom+i/columns*panelHeight)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (p panel) draw(b *bytes.Buffer, r *results, left, top int) {
	highest := 0.0
	for _, name := range p.cases {
		for _, target := range p.targets {
			if v := r.median(name, target, p.metric); v > highest {
				highest = v
			}
		}
	}
	text(b, left+margin, top+16, "start", p.title)
	if highest == 0 {
		text(b, left+margin, top+panelHeight/2, "start", "not measured")
		return
	}
	const plotWidth, plotHeight = panelWidth - margin - 14, panelHeight - 70
	base := top + 30 + plotHeight
	group := plotWidth / len(p.cases)
	width := min(group*4/5/len(p.targets), 44)
	for i, name := range p.cases {
		start := left + margin + i*group + (group-width*len(p.targets))/2
		for j, target := range p.targets {
			v := r.median(name, target, p.metric)
			if math.IsNaN(v) {
				continue
			}
			height := int(math.Round(v / highest * (plotHeight - 14)))
			fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"><title>%s %s: %s</title></rect>`+"\n",
				start+j*width, base-height, width-1, height, colors[target], name, target, readable(v))
			fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" font-size="8">%s</text>`+"\n",
				start+j*width+width/2, base-height-3, brief(v))
		}
		_, clients, _ := strings.Cut(name, "-")
		if clients == "" {
			clients = name
		}
		text(b, left+margin+i*group+group/2, base+15, "middle", clients)
	}
	fmt.Fprintf(b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#222"/>`+"\n", left+margin, base, left+margin+plotWidth, base)
}

// brief fits above a bar.
func brief(v float64) string {
	switch {
	case v >= 10000:
		return fmt.Sprintf("%.0fk", v/1000)
	case v >= 1000:
		return fmt.Sprintf("%.1fk", v/1000)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func text(b *bytes.Buffer, x, y int, anchor, content string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s">`, x, y, anchor)
	_ = xml.EscapeText(b, []byte(content)) // a bytes.Buffer cannot fail
	b.WriteString("</text>\n")
}
