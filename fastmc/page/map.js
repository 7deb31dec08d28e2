// Maps of the embedding: a dot a clip. All maps of a page show the same choice of clips, so that one sees where another
// run puts what one points at.

const page = window.fastmcPage;
const { make, fill, button, number, colours } = page;

const REACH = 30; // pixels within which a dot is pointed at
const FEWEST_IN_LIST = 2;

const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// What a dot can be coloured by: for each, the value of a clip of a run, and the names of values.
function colourings(content, clips) {
  const byClass = { name: "class", of: (i) => clips.classOf(i), say: (value) => clips.nameOfClass(value) };
  const fields = (content.fields ?? []).map((field) => ({
    name: field,
    of: (i) => clips.columns[field]?.[i] ?? -1,
    say: (value) => (value === -1 ? `${field} unknown` : `${field} ${value}`),
  }));
  const rightness = content.runs.some((run) => run.predictions)
    ? [{ name: "right or wrong", of: (i, run) => rightOf(run, i, clips), say: (value) => ["right", "wrong", "not predicted"][value] }]
    : [];
  return [byClass, ...rightness, ...fields];
}

// What a run's classifier took each clip for: {index of a clip: class}.
function predictedBy(run) {
  if (!run.taken) {
    const { clip = [], predicted = [] } = run.predictions ?? {};
    run.taken = new Map(clip.map((i, n) => [i, predicted[n]]));
    run.taken.delete(-1);
  }
  return run.taken;
}

function rightOf(run, i, clips) {
  const taken = predictedBy(run).get(i);
  return taken === undefined ? 2 : Number(taken !== clips.classOf(i));
}

// What the maps of the page have in common: which colouring, which clips are shown, pointed at, chosen.
class Choice {
  constructor(content, clips) {
    this.clips = clips;
    this.colourings = colourings(content, clips);
    this.colouring = this.colourings[0];
    this.only = new Set();
    this.words = "";
    this.hovered = null;
    this.chosen = null;
    this.values = [];
  }

  shows(i, run) {
    const { colouring, only, words, clips } = this;
    if (only.size && !only.has(colouring.of(i, run))) return false;
    return !words || `${clips.className(i)} ${clips.name(i)}`.toLowerCase().includes(words);
  }
}

class EmbeddingMap {
  constructor(host, run, number_, choice, events) {
    const { clip, x, y } = run.map;
    Object.assign(this, { host, run, choice, events });
    this.dots = clip.map((i, n) => ({ i, n, x: x[n], y: y[n] }));
    this.middle = (Math.min(...x) + Math.max(...x)) / 2;
    this.dotOf = new Map(this.dots.map((dot) => [dot.i, dot]));
    this.size = this.dots.length > 2500 ? 6 : this.dots.length > 600 ? 8 : 10;
    const label = `Map of the embedding of ${run.label}: ${this.dots.length} clips. Arrow keys go from clip to clip, Enter shows neighbours.`;
    const drawn = page.chart(host, `map ${number_}`, () => this.option(), label);
    this.chart = drawn.chart;
    this.redraw = drawn.redraw;
    this.listen();
  }

  option() {
    const { dots, choice, run } = this;
    this.shown = dots.filter(({ i }) => choice.shows(i, run));
    const hidden = this.shown.length < dots.length ? dots.filter(({ i }) => !choice.shows(i, run)) : [];
    const { line, card } = colours();
    const space = { type: "value", show: false, min: low, max: high };
    const inside = { type: "inside", filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, moveOnMouseMove: !page.touch };
    const dot = (each, style) => ({ value: [each.x, each.y], ...style });
    const styleOf = ({ i }) => {
      const rank = choice.rank(choice.colouring.of(i, run));
      return { symbol: page.seriesShape(rank), itemStyle: { color: page.seriesColour(rank) } };
    };
    return {
      grid: { left: 6, right: 6, top: 6, bottom: 6 },
      xAxis: space,
      yAxis: space,
      dataZoom: [{ ...inside, xAxisIndex: 0 }, { ...inside, yAxisIndex: 0 }],
      series: [
        { id: "hidden", type: "scatter", silent: true, symbolSize: 4, itemStyle: { color: line }, data: hidden.map((each) => dot(each)) },
        {
          id: "shown",
          type: "scatter",
          silent: true,
          symbolSize: this.size,
          itemStyle: { opacity: 0.9, borderColor: card, borderWidth: 0.6 },
          data: this.shown.map((each) => dot(each, styleOf(each))),
        },
        this.marks(),
      ],
    };
  }

  // Rings about what is pointed at, chosen, and near the chosen one where it is on the map. On a layer of their own, so
  // that the dots need not be drawn again.
  marks() {
    const { choice, dotOf, run } = this;
    const { ink, accent, card } = colours();
    const ring = (i, color, width, size, words) => {
      const dot = dotOf.get(i);
      return dot && {
        value: [dot.x, dot.y],
        symbolSize: size,
        itemStyle: { color: "transparent", borderColor: color, borderWidth: width },
        label: { show: Boolean(words), formatter: () => page.shorten(words, 40), position: dot.x > this.middle ? "left" : "right", distance: 7, color: ink, fontSize: 12, fontWeight: 600, textBorderColor: card, textBorderWidth: 3 },
      };
    };
    const near = choice.chosen === null ? [] : this.neighbours(choice.chosen).map(({ i }) => ring(i, accent, 1.5, this.size + 6));
    const chosen = choice.chosen === null ? null : ring(choice.chosen, accent, 3, this.size + 9);
    const hovered = choice.hovered === null ? null : ring(choice.hovered, ink, 2, this.size + 7, choice.clips.className(choice.hovered));
    return { id: "marks", type: "scatter", silent: true, zlevel: 1, symbol: "circle", data: [...near, chosen, hovered].filter(Boolean) };
  }

  mark() {
    this.chart.setOption({ series: [this.marks()] });
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
    this.host.tabIndex = 0;
    this.host.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const { hovered } = this.choice;
    if (TURNS[event.key]) {
      const from = this.dotOf.get(hovered);
      const to = from && this.shown.includes(from) ? this.dotTowards(from, TURNS[event.key]) : this.shown[0];
      if (to) this.events.point(to.i);
    } else if (event.key === "Enter" && hovered !== null) this.events.choose(hovered);
    else if (event.key === "Escape") this.events.choose(null);
    else if (event.key === " ") this.events.toggle();
    else if (event.key === "+") this.zoom(0.6);
    else if (event.key === "-") this.zoom(1 / 0.6);
    else if (event.key === "0") this.zoom(100);
    else return;
    event.preventDefault();
  }

  zoom(factor) {
    const zooms = this.chart.getOption().dataZoom.map(({ start, end }, dataZoomIndex) => {
      const [middle, half] = [(start + end) / 2, Math.min(((end - start) / 2) * factor, 50)];
      const first = Math.min(Math.max(middle - half, 0), 100 - 2 * half);
      return { dataZoomIndex, start: first, end: first + 2 * half };
    });
    this.chart.dispatchAction({ type: "dataZoom", batch: zooms });
  }
}

// Axes end a little beyond the dots.
const low = ({ min, max }) => min - 0.04 * (max - min || 1);
const high = ({ min, max }) => max + 0.04 * (max - min || 1);

class MapSection {
  constructor(body, content, clips) {
    this.clips = clips;
    this.runs = content.runs.filter((run) => run.map);
    this.choice = new Choice(content, clips);
    this.camera = new page.Camera(clips.skeleton);
    this.player = new page.Player(clips.skeleton, { camera: this.camera, size: "large", controls: true, empty: "Point at a dot to play its clip." });
    this.caption = make("div", { class: "caption", "aria-live": "polite" });
    this.count = make("span", { class: "hint", "aria-live": "polite" });
    this.legend = make("div", { class: "legend values" });
    this.near = make("div", { class: "near", "data-part": "neighbours" });
    this.shelves = [];
    this.lay(body);
    this.recolour(0);
    const events = { point: (i) => this.point(i), choose: (i) => this.choose(i), toggle: () => this.player.toggle() };
    this.maps = this.runs.map((run, n) => new EmbeddingMap(this.hosts[n], run, n, this.choice, events));
    this.begin();
  }

  lay(body) {
    const search = make("input", { type: "search", placeholder: "Search a class or a clip", "aria-label": "Search clips by class or name" });
    search.addEventListener("input", () => this.search(search.value));
    search.addEventListener("keydown", (event) => event.key === "Enter" && this.playFirst());
    const names = this.choice.colourings.map(({ name }) => name);
    const colouring = names.length > 1 ? page.segments("Colour the dots by", names, 0, (n) => this.recolour(n)) : null;
    const label = colouring ? make("span", { class: "hint" }, "Colour by") : null;
    this.hosts = this.runs.map(() => make("div", { class: this.runs.length > 1 ? "map half" : "map" }));
    const cards = this.runs.map((run, n) => this.card(run, n));
    const side = make("aside", { class: "card side" }, this.player.element, this.caption);
    const maps = make("div", { class: this.runs.length > 1 ? "maps several" : "maps" }, cards);
    body.append(
      make("div", { class: "row toolbar" }, label, colouring, search, this.count),
      make("div", { class: "map-and-player" }, maps, side),
      this.legend,
      this.near,
    );
  }

  card(run, n) {
    const zoom = (words, factor, text) => button(text, () => this.maps[n].zoom(factor), { class: "quiet", "aria-label": words, title: words });
    const zooms = make("div", { class: "zooms" }, zoom("Zoom in", 0.6, "+"), zoom("Zoom out", 1 / 0.6, "−"), zoom("Show all of the map", 100, "⤢"));
    const title = this.runs.length > 1 ? make("h3", {}, run.label) : null;
    return make("div", { class: "card map-card" }, title, make("div", { class: "map-holder" }, this.hosts[n], zooms), make("p", { class: "hint" }, run.map.words ?? ""));
  }

  // The page begins with a clip that plays, so that one sees what a dot is.
  begin() {
    const first = this.maps[0]?.dots[0];
    if (!first) return;
    this.choice.hovered = first.i;
    this.maps.forEach((each) => each.mark());
    this.play(first.i, page.calm);
  }

  play(i, still = false) {
    const { clips, player } = this;
    const motion = clips.motion(i);
    if (motion) player.show(motion, { seconds: clips.seconds(i), index: i, label: clips.describe(i), still });
    else player.clear("This clip's motion is not in the page.");
    const fields = this.choice.colourings.filter(({ name }) => name !== "class" && name !== "right or wrong");
    const verdicts = this.runs.map((run) => this.verdictOf(run, i));
    fill(
      this.caption,
      make("strong", { class: "name" }, clips.className(i)),
      make("div", { class: "name" }, clips.name(i)),
      make("div", {}, fields.map(({ of, say }) => say(of(i))).join(", ")),
      verdicts,
    );
  }

  verdictOf(run, i) {
    const taken = predictedBy(run).get(i);
    if (taken === undefined) return null;
    const who = this.runs.length > 1 ? `${run.label}: ` : "";
    const isRight = taken === this.clips.classOf(i);
    return page.verdict(isRight, isRight ? `${who}recognised` : `${who}taken for ${this.clips.nameOfClass(taken)}`);
  }

  point(i) {
    if (this.choice.hovered === i) return;
    this.choice.hovered = i;
    this.maps.forEach((map) => map.mark());
    this.play(i);
  }

  choose(i) {
    this.choice.chosen = i;
    if (i !== null) this.point(i);
    this.maps.forEach((map) => map.mark());
    this.showNeighbours(i);
  }

  showNeighbours(i) {
    this.shelves.forEach((shelf) => shelf.clear());
    this.shelves = [];
    if (i === null) {
      fill(this.near, make("p", { class: "hint" }, "Click a dot, and its five nearest neighbours of the training clips play here, side by side."));
      return;
    }
    const close = button("Close", () => this.choose(null), { class: "quiet" });
    const title = make("h3", {}, `Nearest to “${this.clips.describe(i)}”`);
    fill(this.near, make("div", { class: "row" }, title, close), this.maps.map((map) => this.neighboursOf(map, i)));
  }

  neighboursOf(map, i) {
    const near = map.neighbours(i);
    const who = this.maps.length > 1 ? `${map.run.label}: ` : "";
    if (!near.length) return make("p", { class: "hint" }, `${who}no neighbours of this clip are known.`);
    const same = near.filter((each) => this.clips.classOf(each.i) === this.clips.classOf(i)).length;
    const shelf = new page.Shelf(this.clips, this.camera, 6);
    this.shelves.push(shelf);
    const cosine = new Map(near.map((each) => [each.i, each.cosine]));
    shelf.show([i, ...near.map((each) => each.i)], (other) => this.cardOf(other, i, cosine));
    shelf.cards[0]?.element.classList.add("this");
    return make("div", { class: "neighbours" }, make("p", { class: "hint" }, `${who}${same} of ${near.length} are of its class.`), shelf.element);
  }

  cardOf(other, i, cosine) {
    const { clips } = this;
    if (other === i) return { lines: [clips.name(i), "this clip"] };
    const same = clips.classOf(other) === clips.classOf(i);
    return { lines: [clips.name(other), `cosine ${number(cosine.get(other))}`, page.verdict(same, same ? "same class" : "another class")] };
  }

  recolour(n) {
    const { choice } = this;
    choice.colouring = choice.colourings[n];
    choice.only.clear();
    const counts = new Map();
    for (const run of this.runs) {
      for (const i of run.map.clip) {
        const value = choice.colouring.of(i, run);
        counts.set(value, (counts.get(value) ?? 0) + 1 / this.runs.length);
      }
    }
    choice.values = [...counts.keys()].sort((a, b) => a - b);
    const ranks = new Map(choice.values.map((value, rank) => [value, rank]));
    choice.rank = (value) => ranks.get(value) ?? 0;
    this.drawLegend(counts);
    this.refresh();
  }

  drawLegend(counts) {
    const { only, colouring, values } = this.choice;
    const chips = values.map((value, rank) => {
      const press = () => {
        if (only.has(value)) only.delete(value);
        else only.add(value);
        chip.setAttribute("aria-pressed", only.has(value));
        this.refresh();
      };
      const chip = button(page.shorten(colouring.say(value), 60), press, { "aria-pressed": false, title: `${colouring.say(value)}: ${plainCount(counts.get(value))}` });
      chip.prepend(page.swatch(rank));
      return chip;
    });
    const all = button("All", () => this.recolour(this.choice.colourings.indexOf(colouring)), { class: "quiet" });
    this.all = all;
    fill(this.legend, chips.length >= FEWEST_IN_LIST ? [chips, all] : null);
  }

  search(text) {
    this.choice.words = text.trim().toLowerCase();
    this.refresh();
  }

  refresh() {
    this.maps?.forEach((map) => map.redraw());
    const { only, words } = this.choice;
    if (this.all) this.all.hidden = !only.size;
    const total = this.runs[0].map.clip.length;
    const shown = this.runs[0].map.clip.filter((i) => this.choice.shows(i, this.runs[0])).length;
    fill(this.count, only.size || words ? `${number(shown)} of ${page.plural(total, "clip")}` : page.plural(total, "clip"));
    if (!this.shelves.length) this.showNeighbours(null);
  }

  playFirst() {
    const first = this.maps[0].shown[0];
    if (first) this.point(first.i);
  }
}

const plainCount = (count) => page.plural(Math.round(count), "clip");

function map(content, clips) {
  const runs = content.runs.filter((run) => run.map);
  if (!runs.length || !clips) return null;
  const several = runs.length > 1 ? " What you point at in one map is marked in all of them." : "";
  return {
    id: "map",
    title: "Map",
    words:
      "Each dot is a clip of the test part, and clips that the encoder finds alike lie close together. Point at a dot to play its clip. " +
      `Click it to see the five clips of the training part that are most like it.${several} Drag to move about.`,
    build: (body) => new MapSection(body, content, clips),
  };
}

Object.assign(page, { map, predictedBy });
