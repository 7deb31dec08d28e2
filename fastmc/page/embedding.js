// A map of the embedding of one run: a dot a clip.
//
//   new EmbeddingMap(host, run, number, choice, events)
//     events                     point(i), choose(i or null) and toggle() are called for what the reader does
//     mark(), redraw()           draw the rings anew, or all of it
//     neighbours(i)              [{i, cosine}, ...]
//     zoom(factor), dots, shown  the dots, and those of them that are shown: [{i, n, x, y}, ...]

const page = window.fastmcPage;
const { colours } = page;

const REACH = 30; // pixels within which a dot is pointed at
const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class EmbeddingMap {
  constructor(host, run, number_, choice, events) {
    const { clip, x, y } = run.map;
    Object.assign(this, { host, run, choice, events });
    this.dots = clip.map((i, n) => ({ i, n, x: x[n], y: y[n] }));
    this.rings = [];
    this.dotOf = new Map(this.dots.map((dot) => [dot.i, dot]));
    this.size = Math.min(Math.max(350 / Math.sqrt(this.dots.length), 6), 10);
    const keys = "Arrow keys go from clip to clip, Enter shows neighbours.";
    const label = `Map of the embedding of ${run.label}: ${this.dots.length} clips. ${keys}`;
    const drawn = page.chart(host, `map ${number_}`, () => this.option(), label);
    this.chart = drawn.chart;
    this.redraw = () => {
      drawn.redraw();
      this.mark();
    };
    this.listen();
  }

  option() {
    const { dots, choice, run } = this;
    this.shown = dots.filter(({ i }) => choice.shows(i, run));
    const hidden = this.shown.length < dots.length ? dots.filter(({ i }) => !choice.shows(i, run)) : [];
    const { faint, card } = colours();
    const space = { type: "value", show: false, min: low, max: high };
    const inside = {
      type: "inside",
      filterMode: "none",
      zoomOnMouseWheel: "ctrl",
      moveOnMouseWheel: false,
      moveOnMouseMove: !page.touch,
    };
    const dot = (each, style) => ({ value: [each.x, each.y], ...style });
    const styleOf = ({ i }) => {
      const rank = choice.rank(choice.colouring.of(i, run));
      return { symbol: page.seriesShape(rank), itemStyle: { color: page.seriesColour(rank) } };
    };
    return {
      grid: { left: 6, right: 6, top: 6, bottom: 6 },
      xAxis: space,
      yAxis: space,
      dataZoom: this.zooms().map(({ start, end }, n) => ({
        ...inside,
        [n ? "yAxisIndex" : "xAxisIndex"]: 0,
        start,
        end,
      })),
      series: [
        {
          id: "hidden",
          type: "scatter",
          silent: true,
          symbolSize: 4,
          itemStyle: { color: faint, opacity: 0.35 },
          data: hidden.map((each) => dot(each)),
        },
        {
          id: "shown",
          type: "scatter",
          silent: true,
          symbolSize: this.size,
          itemStyle: { opacity: 0.9, borderColor: card, borderWidth: 0.6 },
          data: this.shown.map((each) => dot(each, styleOf(each))),
        },
      ],
    };
  }

  // What part of the map is shown, across and up, percent: a filter does not change it.
  zooms() {
    return this.chart?.getOption().dataZoom ?? [all, all];
  }

  // Rings about what is pointed at, chosen, and near the chosen one where it is on the map. They lie on a layer of their
  // own: to have ECharts draw a series anew, it would draw thousands of dots.
  mark() {
    const { choice, rings } = this;
    const { ink, accent } = colours();
    const surface = this.chart.getZr();
    rings.splice(0).forEach((ring) => surface.remove(ring));
    if (choice.chosen !== null) {
      for (const { i } of this.neighbours(choice.chosen)) this.ring(i, { stroke: accent, lineWidth: 1.5 }, 3);
      this.ring(choice.chosen, { stroke: accent, lineWidth: 3 }, 5);
    }
    if (choice.hovered !== null) {
      this.ring(choice.hovered, { stroke: ink, lineWidth: 2 }, 4);
      this.tell(choice.hovered, choice.clips.className(choice.hovered));
    }
    rings.forEach((ring) => surface.add(ring));
  }

  // Where a clip's dot is, if it is in sight.
  sight(i) {
    const dot = this.dotOf.get(i);
    if (!dot) return null;
    const [x, y] = this.places()(dot);
    const { clientWidth: width, clientHeight: height } = this.host;
    return x >= 0 && y >= 0 && x <= width && y <= height ? { x, y, isLeft: x < width / 2 } : null;
  }

  ring(i, style, wider) {
    const at = this.sight(i);
    if (!at) return;
    const shape = { cx: at.x, cy: at.y, r: this.size / 2 + wider };
    this.rings.push(new echarts.graphic.Circle({ shape, style: { fill: "none", ...style }, ...ABOVE }));
  }

  tell(i, words) {
    const at = this.sight(i);
    if (!at) return;
    const { ink, card } = colours();
    const away = this.size / 2 + 11;
    const place = at.isLeft ? { x: at.x + away, align: "left" } : { x: at.x - away, align: "right" };
    const look = { fill: ink, stroke: card, lineWidth: 3, font: `600 12px ${page.FONT}`, verticalAlign: "middle" };
    const style = { text: page.shorten(words, 40), y: at.y, ...place, ...look };
    this.rings.push(new echarts.graphic.Text({ style, ...ABOVE }));
  }

  // The nearest clips of training, most alike first: [{i, cosine}, ...].
  neighbours(i) {
    const { neighbours, cosines } = this.run.map;
    const dot = this.dotOf.get(i);
    if (!dot || !neighbours) return [];
    return neighbours[dot.n].map((other, k) => ({ i: other, cosine: cosines?.[dot.n]?.[k] }));
  }

  // A function of a dot that gives its pixel. ECharts is asked for two places only: there may be thousands of dots.
  places() {
    const [[x0, y0], [x1, y1]] = [0, 1].map((n) => this.chart.convertToPixel({ seriesIndex: 1 }, [n, n]));
    return ({ x, y }) => [x0 + x * (x1 - x0), y0 + y * (y1 - y0)];
  }

  dotAt(x, y) {
    const place = this.places();
    let best = null;
    let least = REACH;
    for (const dot of this.shown) {
      const [a, b] = place(dot);
      const away = Math.hypot(a - x, b - y);
      if (away < least) [best, least] = [dot, away];
    }
    return best;
  }

  // The dot that lies next in a direction; sideways counts twice.
  dotTowards(from, [right, down]) {
    const place = this.places();
    const [x, y] = place(from);
    let best = null;
    let least = Infinity;
    for (const dot of this.shown) {
      const [a, b] = place(dot);
      const along = (a - x) * right + (b - y) * down;
      const aside = Math.abs((a - x) * down) + Math.abs((b - y) * right);
      if (dot !== from && along > 0.5 && along + 2 * aside < least) [best, least] = [dot, along + 2 * aside];
    }
    return best;
  }

  listen() {
    const surface = this.chart.getZr();
    surface.on("mousemove", ({ offsetX, offsetY }) => {
      const dot = this.dotAt(offsetX, offsetY);
      this.host.style.cursor = dot ? "pointer" : "";
      if (dot) this.events.point(dot.i);
    });
    surface.on("click", ({ offsetX, offsetY }) => {
      const dot = this.dotAt(offsetX, offsetY);
      if (dot) this.events.choose(dot.i);
    });
    this.chart.on("datazoom", () => this.mark());
    page.onTheme(() => this.mark());
    new ResizeObserver(() => this.mark()).observe(this.host); // after that of page.chart, which draws the dots
    this.host.tabIndex = 0;
    page.onKeys(this.host, (key) => this.press(key));
  }

  press(key) {
    const { hovered } = this.choice;
    if (TURNS[key]) {
      const from = this.dotOf.get(hovered);
      const to = from && this.shown.includes(from) ? this.dotTowards(from, TURNS[key]) : this.shown[0];
      if (to) this.events.point(to.i);
    } else if (key === "Enter" && hovered !== null) this.events.choose(hovered);
    else if (key === "Escape") this.events.choose(null);
    else if (key === " ") this.events.toggle();
    else if (key === "+") this.zoom(0.6);
    else if (key === "-") this.zoom(1 / 0.6);
    else if (key === "0") this.zoom(100);
    else return false;
  }

  zoom(factor) {
    const zooms = this.zooms().map(({ start, end }, dataZoomIndex) => {
      const [middle, half] = [(start + end) / 2, Math.min(((end - start) / 2) * factor, 50)];
      const first = Math.min(Math.max(middle - half, 0), 100 - 2 * half);
      return { dataZoomIndex, start: first, end: first + 2 * half };
    });
    this.chart.dispatchAction({ type: "dataZoom", batch: zooms });
  }
}

const ABOVE = { silent: true, zlevel: 1 };
const all = { start: 0, end: 100 };

// Axes end a little beyond the dots.
const low = ({ min, max }) => min - 0.04 * (max - min || 1);
const high = ({ min, max }) => max + 0.04 * (max - min || 1);

Object.assign(page, { EmbeddingMap });
