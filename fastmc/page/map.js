// Maps of the embedding, the clip that is pointed at, and the neighbours of one that is chosen. All maps of a page show
// the same choice of clips, so that one sees where another run puts what one points at. Of many runs the first of each
// group has its map at first.

const page = window.fastmcPage;
const { make, fill, button, number, predictedBy } = page;

const FEWEST_IN_LIST = 2;
const MOST_AT_FIRST = 4; // maps

class MapSection {
  constructor(body, content, clips) {
    this.clips = clips;
    this.runs = content.runs.filter((run) => run.map);
    this.made = [];
    this.shown = new Set(firstOfGroups(content).slice(0, MOST_AT_FIRST));
    this.choice = new page.Choice(content, clips);
    this.camera = new page.Camera(clips.skeleton);
    this.player = new page.Player(clips.skeleton, {
      camera: this.camera,
      size: "large",
      controls: true,
      empty: "Point at a dot to play its clip.",
    });
    this.caption = make("div", { class: "caption", "aria-live": "polite" });
    this.count = make("span", { class: "hint", "aria-live": "polite" });
    this.howMany = make("span", { class: "hint", "aria-live": "polite" });
    this.kept = make("span", { class: "row", "data-part": "kept" });
    this.legend = make("div", { class: "legend values", role: "toolbar", "aria-label": "Show these dots alone" });
    page.onKeys(this.legend, (key) => this.goAlong(key));
    this.near = make("div", { class: "near", "data-part": "neighbours" });
    this.shelves = [];
    this.lay(body);
    this.recolour(0);
    this.showMaps();
    this.begin();
  }

  // Those that are shown.
  get maps() {
    return this.made.filter((_, n) => this.shown.has(n));
  }

  showMaps() {
    const several = this.shown.size > 1;
    const events = { point: (i) => this.point(i), choose: (i) => this.choose(i), toggle: () => this.player.toggle() };
    this.grid.classList.toggle("several", several);
    this.runs.forEach((run, n) => {
      this.cards[n].hidden = !this.shown.has(n);
      this.hosts[n].classList.toggle("half", several);
      if (this.shown.has(n)) this.made[n] ??= new page.EmbeddingMap(this.hosts[n], run, n, this.choice, events);
    });
    fill(this.howMany, `${number(this.shown.size)} of ${page.plural(this.runs.length, "map")}`);
    this.maps.forEach((map) => map.redraw());
  }

  // One map is there always.
  switchMap(n) {
    if (!this.shown.delete(n)) this.shown.add(n);
    else if (!this.shown.size) this.shown.add(n);
    this.showMaps();
    this.refresh();
    if (this.choice.hovered !== null) this.tell(this.choice.hovered);
    if (this.choice.chosen !== null) this.showNeighbours(this.choice.chosen);
    return this.shown.has(n);
  }

  chooser() {
    if (this.runs.length < 2) return null;
    const chips = this.runs.map(({ label }, n) => {
      const press = () => chip.setAttribute("aria-pressed", this.switchMap(n));
      const chip = button(label, press, { "aria-pressed": this.shown.has(n) });
      return chip;
    });
    const words = make("span", { class: "hint" }, "Maps of");
    const list = make("div", { class: "legend", role: "group", "aria-label": "Runs whose maps are shown" }, chips);
    return make("div", { class: "row toolbar" }, words, list, this.howMany);
  }

  lay(body) {
    const search = make("input", {
      type: "search",
      placeholder: "Search a class or a clip",
      "aria-label": "Search clips by class or name",
    });
    search.addEventListener("input", () => this.search(search.value));
    search.addEventListener("keydown", (event) => event.key === "Enter" && this.playFirst());
    const names = this.choice.colourings.map(({ name }) => name);
    const colouring = names.length > 1 ? page.segments("Colour the dots by", names, 0, (n) => this.recolour(n)) : null;
    const label = colouring ? make("span", { class: "hint" }, "Colour by") : null;
    this.hosts = this.runs.map(() => make("div", { class: "map" }));
    this.cards = this.runs.map((run, n) => this.card(run, n));
    const side = make("aside", { class: "card side" }, this.player.element, this.caption);
    this.grid = make("div", { class: "maps" }, this.cards);
    body.append(
      this.chooser() ?? "",
      make("div", { class: "row toolbar" }, label, colouring, search, this.kept, this.count),
      this.legend,
      make("div", { class: "map-and-player" }, this.grid, side),
      this.near,
    );
  }

  card(run, n) {
    const zoom = (words, factor, text) =>
      button(text, () => this.made[n].zoom(factor), { class: "quiet", "aria-label": words, title: words });
    const zooms = make(
      "div",
      { class: "zooms" },
      zoom("Zoom in", 0.6, "+"),
      zoom("Zoom out", 1 / 0.6, "−"),
      zoom("Show all of the map", 100, "⤢"),
    );
    const title = this.runs.length > 1 ? make("h3", {}, run.label) : null;
    return make(
      "div",
      { class: "card map-card" },
      title,
      make("div", { class: "map-holder" }, this.hosts[n], zooms),
      make("p", { class: "hint" }, run.map.words ?? ""),
    );
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
    this.tell(i);
  }

  tell(i) {
    const { clips } = this;
    const fields = this.choice.colourings.filter(({ name }) => name !== "class" && name !== "right or wrong");
    const verdicts = this.maps.map(({ run }) => this.verdictOf(run, i));
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
      fill(
        this.near,
        make(
          "p",
          { class: "hint" },
          "Click a dot, and its five nearest neighbours of the training clips play here, side by side.",
        ),
      );
      return;
    }
    const close = button("Close", () => this.choose(null), { class: "quiet" });
    const title = make("h3", {}, `Nearest to “${this.clips.describe(i)}”`);
    fill(
      this.near,
      make("div", { class: "row" }, title, close),
      this.maps.map((map) => this.neighboursOf(map, i)),
    );
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
    return make(
      "div",
      { class: "neighbours" },
      make("p", { class: "hint" }, `${who}${same} of ${near.length} are of its class.`),
      shelf.element,
    );
  }

  cardOf(other, i, cosine) {
    const { clips } = this;
    if (other === i) return { lines: [clips.name(i), "this clip"] };
    const same = clips.classOf(other) === clips.classOf(i);
    return {
      lines: [
        clips.name(other),
        `cosine ${number(cosine.get(other))}`,
        page.verdict(same, same ? "same class" : "another class"),
      ],
    };
  }

  recolour(n) {
    this.drawLegend(this.choice.colourBy(n, this.runs));
    this.refresh();
  }

  drawLegend(counts) {
    const { only, colouring, values } = this.choice;
    this.chips = values.map((value, rank) => {
      const press = () => {
        if (!only.delete(value)) only.add(value);
        chip.setAttribute("aria-pressed", only.has(value));
        this.refresh();
      };
      const chip = button(page.shorten(colouring.say(value), 60), press, {
        "aria-pressed": only.has(value),
        title: `${colouring.say(value)}: ${plainCount(counts.get(value))}`,
      });
      chip.prepend(page.swatch(rank));
      return chip;
    });
    this.all = button("All", () => this.showAll(), { class: "quiet" });
    fill(this.legend, this.chips.length >= FEWEST_IN_LIST ? [this.chips, this.all] : null);
    this.stopAt(this.chips[0]);
  }

  showAll() {
    this.choice.showAll();
    this.chips.forEach((chip) => chip.setAttribute("aria-pressed", false));
    this.stopAt(this.listed()[0]);
    this.listed()[0].focus();
    this.refresh();
  }

  // What another colouring shows alone, each with a press that ends it.
  drawKept() {
    const chips = this.choice.kept.map(([colouring, only]) => {
      const words = page.listed([...only].map((value) => colouring.say(value)));
      const clear = () => {
        only.clear();
        this.refresh();
        this.listed()[0].focus();
      };
      return button(`${page.shorten(words, 60)} ×`, clear, { "aria-label": `Show all again, not ${words} alone` });
    });
    fill(this.kept, chips);
    this.kept.hidden = !chips.length;
  }

  // The list may be long: the tab key stops at one of it, and arrows go along.
  stopAt(chip) {
    for (const each of [...this.chips, this.all]) each.tabIndex = each === chip ? 0 : -1;
  }

  listed() {
    return [...this.chips, this.all].filter((each) => !each.hidden);
  }

  goAlong(key) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
    if (!step) return false;
    const there = this.listed();
    const next = there[(there.indexOf(document.activeElement) + step + there.length) % there.length];
    this.stopAt(next);
    next.focus();
  }

  // Of a list of classes, those that are searched for.
  narrow() {
    const { colouring, values, words, clips } = this.choice;
    const named = (value) => clips.nameOfClass(value).toLowerCase().includes(words);
    const found = colouring.name === "class" ? values.map(named) : [];
    this.chips.forEach((chip, n) => (chip.hidden = found.includes(true) && !found[n]));
    this.stopAt(this.listed()[0]);
  }

  search(text) {
    this.choice.words = text.trim().toLowerCase();
    this.narrow();
    this.refresh();
  }

  refresh() {
    this.maps.forEach((map) => map.redraw());
    const { isNarrowed, words } = this.choice;
    this.all.hidden = !isNarrowed;
    this.drawKept();
    const run = this.runs[Math.min(...this.shown)];
    const total = run.map.clip.length;
    const shown = run.map.clip.filter((i) => this.choice.shows(i, run)).length;
    const some = `${number(shown)} of ${page.plural(total, "clip")}${shown ? "" : ": nothing matches"}`;
    fill(this.count, isNarrowed || words ? some : page.plural(total, "clip"));
    if (!this.shelves.length) this.showNeighbours(null);
  }

  playFirst() {
    const first = this.maps[0].shown[0];
    if (first) this.point(first.i);
  }
}

// Where the first run of each group that has a map stands among those that have one.
function firstOfGroups({ runs, groups }) {
  const withMap = runs.flatMap((run, n) => (run.map ? [n] : []));
  const firsts = groups.map((group) => withMap.findIndex((n) => group.runs.includes(n)));
  return firsts.filter((n) => n >= 0);
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
      "Each dot is a clip of the test part, and clips that the encoder finds alike lie close together. Point at a " +
      "dot to play its clip. Click it to see the five clips of the training part that are most like it." +
      `${several} Press a name of the list to see its dots alone, or several of them. Drag to move about.`,
    build: (body) => new MapSection(body, content, clips),
  };
}

Object.assign(page, { map });
