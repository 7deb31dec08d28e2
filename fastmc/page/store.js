// The page of a packed store: what it holds, what looks wrong, and what training will see of it.

const page = window.fastmcPage;
const { make, fill, button, choice, segments, number, plural } = page;

const SHOWN = 12; // clips in the grid at once
const DRAGGED = 5; // pixels that a click may wander

page.kinds.store = (content, clips) => {
  const gallery = new Gallery(content, clips);
  const { store } = content;
  return {
    lead: lead(content),
    facts: store.facts,
    sections: [
      findings(store),
      gallery.section(),
      counts(store, gallery),
      lengths(store, gallery),
      skipped(store),
      views(content, clips),
    ],
  };
};

function lead({ store, classes }) {
  const clips = store.bodies.reduce((sum, [, count]) => sum + count, 0);
  const named = classes.length ? ` of ${plural(classes.length, "class", "classes")}` : " without labels";
  return `A packed store of ${plural(clips, "clip")}${named}, as training will see it, before any training.`;
}

// --- What looks wrong.

function findings({ sanity, warnings, remarks }) {
  const all = [
    ...sanity.map((text) => ["wrong", "The clips do not look like bodies", text]),
    ...warnings.map((text) => ["wrong", "Warning", text]),
    ...remarks.map((text) => ["note", "Note", text]),
  ];
  const wrong = all.filter(([kind]) => kind === "wrong").length;
  return {
    id: "findings",
    title: wrong ? "What looks wrong" : "Nothing looks wrong",
    words: wrong
      ? "Mend this before you train: what is trained on is what is played below."
      : "Units, joint order, sides and labels were looked at, and bodies look like bodies. Let your own eye judge the clips.",
    build: (body) => {
      const list = make("ul", { class: "findings" });
      for (const [kind, title, text] of all) {
        list.append(make("li", { class: `card ${kind}` }, make("strong", {}, title), make("p", {}, text)));
      }
      if (all.length) body.append(list);
    },
  };
}

// --- Clips that play.

class Gallery {
  constructor(content, clips) {
    Object.assign(this, { content, clips, at: 0, playAll: false, selects: {} });
    this.wanted = { class: null, fields: {}, split: null, bodies: null, length: null, words: "" };
    this.camera = new page.Camera(clips.skeleton);
  }

  section() {
    return {
      id: "clips",
      title: "Clips",
      words: "Hover, or move the focus there, to play; click to enlarge; drag to turn all of them.",
      build: (body) => this.build(body),
    };
  }

  build(body) {
    this.filters = make("div", { class: "row filters" });
    this.said = make("p", { class: "hint", role: "status" });
    this.grid = make("div", { class: "clips" });
    this.cards = Array.from({ length: SHOWN }, () => new Card(this));
    this.grid.append(...this.cards.map((card) => card.element));
    this.back = button("← Earlier", () => this.turnTo(this.at - SHOWN));
    this.on = button("More →", () => this.turnTo(this.at + SHOWN));
    const all = button("Play all", () => this.setPlayAll(!this.playAll), { "aria-pressed": "false" });
    this.allButton = all;
    body.append(this.filters, make("div", { class: "row" }, this.said, sides(this.clips.skeleton), all), this.grid);
    body.append(make("div", { class: "row pager" }, this.back, this.on));
    this.enlarged = new Enlarged(this);
    this.drawFilters();
    this.choose();
  }

  drawFilters() {
    const { content, wanted } = this;
    const { store } = content;
    const byList = (label, entries, chosen, take) =>
      choice(label, ["all", ...entries.map((entry) => entry[0])], chosen + 1, (n) => this.want(() => take(n - 1)));
    const controls = [];
    if (content.classes.length) {
      const entries = store.by.class.filter(([, , count]) => count);
      const chosen = entries.findIndex(([, value]) => value === wanted.class);
      controls.push(byList("class", entries, chosen, (n) => (wanted.class = entries[n]?.[1] ?? null)));
    }
    for (const field of content.fields) {
      const entries = store.by[field];
      const chosen = entries.findIndex(([, value]) => value === wanted.fields[field]);
      controls.push(byList(field, entries, chosen, (n) => (wanted.fields[field] = entries[n]?.[1] ?? null)));
    }
    const splits = store.protocols.flatMap(({ name }, n) => [[`${name}: training`, [n, 0]], [`${name}: test`, [n, 1]]]);
    const split = splits.findIndex(([, value]) => String(value) === String(wanted.split));
    controls.push(byList("part", splits, split, (n) => (wanted.split = splits[n]?.[1] ?? null)));
    if (store.bodies.length > 1) {
      const entries = store.bodies.map(([bodies]) => [plural(bodies, "body", "bodies"), bodies]);
      const chosen = entries.findIndex(([, value]) => value === wanted.bodies);
      controls.push(byList("bodies", entries, chosen, (n) => (wanted.bodies = entries[n]?.[1] ?? null)));
    }
    const search = make("input", { type: "search", placeholder: "part of a name", value: wanted.words, "aria-label": "Search by name" });
    search.addEventListener("input", () => {
      wanted.words = search.value;
      this.choose();
    });
    if (wanted.length) {
      const [low, high] = wanted.length;
      const words = `${number(low)} – ${number(high - 1)} frames ×`;
      controls.push(button(words, () => this.want(() => (wanted.length = null)), { "aria-label": `Clips of any length, not of ${words}` }));
    }
    fill(this.filters, controls, search, button("Clear", () => this.clear(), { class: "quiet" }));
  }

  want(change) {
    change();
    this.drawFilters();
    this.choose();
  }

  clear() {
    this.want(() => Object.assign(this.wanted, { class: null, fields: {}, split: null, bodies: null, length: null, words: "" }));
  }

  // A bar of another section was pressed: its clips, and nothing else, and there they are.
  only(change) {
    this.clear();
    this.want(() => change(this.wanted));
    document.getElementById("clips").scrollIntoView();
  }

  suits(i) {
    const { clips, content, wanted } = this;
    const { columns } = clips;
    const { protocols, lengths } = content.store;
    const frames = Math.round(columns.seconds[i] * lengths.fps);
    return (
      (wanted.class === null || columns.class[i] === wanted.class) &&
      content.fields.every((field) => !page.isThere(wanted.fields[field]) || columns[field][i] === wanted.fields[field]) &&
      (wanted.split === null || protocols[wanted.split[0]].tests[i] === wanted.split[1]) &&
      (wanted.bodies === null || clips.motion(i).bodies === wanted.bodies) &&
      (wanted.length === null || (frames >= wanted.length[0] && frames < wanted.length[1])) &&
      columns.name[i].toLowerCase().includes(wanted.words.trim().toLowerCase())
    );
  }

  choose() {
    this.found = mixed(Array.from({ length: this.clips.length }, (_, i) => i).filter((i) => this.suits(i)), this.clips);
    this.turnTo(0);
  }

  turnTo(at) {
    this.at = Math.min(Math.max(at, 0), Math.max(this.found.length - 1, 0));
    const here = this.found.slice(this.at, this.at + SHOWN);
    this.cards.forEach((card, n) => card.show(here[n] ?? null));
    this.back.disabled = this.at === 0;
    this.on.disabled = this.at + SHOWN >= this.found.length;
    const range = here.length ? `${number(this.at + 1)} – ${number(this.at + here.length)} of ` : "";
    this.said.textContent = this.found.length
      ? `${range}${plural(this.found.length, "clip")}`
      : "None of the clips that this page carries is like that.";
  }

  setPlayAll(on) {
    this.playAll = on;
    this.allButton.setAttribute("aria-pressed", on);
    this.cards.forEach((card) => card.rest());
  }
}

// What the colours of a body mean, where its joints have sides.
function sides({ sides: of }) {
  const named = ["left", "right"].filter((side) => of.includes(side));
  return named.length ? make("span", { class: "sides" }, named.map((side) => make("span", { class: side }, side))) : null;
}

// One clip of every class, then another one of every class: names often begin with the class, and would bring one alone.
function mixed(found, clips) {
  const seen = new Map();
  const turns = new Map(
    found.map((i) => {
      const turn = seen.get(clips.classOf(i)) ?? 0;
      seen.set(clips.classOf(i), turn + 1);
      return [i, turn];
    }),
  );
  return [...found].sort((a, b) => turns.get(a) - turns.get(b) || clips.classOf(a) - clips.classOf(b));
}

// A clip in the grid: still, until it is looked at.
class Card {
  constructor(gallery) {
    this.gallery = gallery;
    this.player = new page.Player(gallery.clips.skeleton, { camera: gallery.camera });
    this.about = make("div", { class: "about" });
    this.element = make("div", { class: "card clip" }, this.player.element, this.about);
    const { canvas } = this.player;
    let down = null;
    this.element.addEventListener("pointerenter", () => this.player.play());
    this.element.addEventListener("pointerleave", () => this.rest());
    canvas.addEventListener("focus", () => this.player.play());
    canvas.addEventListener("blur", () => this.rest());
    canvas.addEventListener("pointerdown", (event) => (down = event));
    canvas.addEventListener("click", (event) => {
      if (!down || Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < DRAGGED) this.enlarge();
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.enlarge();
    });
  }

  show(clip) {
    this.clip = clip;
    this.element.hidden = clip === null;
    if (clip === null) return this.player.clear();
    const { clips } = this.gallery;
    this.player.show(clips.motion(clip), { seconds: clips.seconds(clip), index: clip, label: clips.describe(clip) });
    const words = [`${clips.seconds(clip).toFixed(1)} s`, ...this.gallery.content.fields.slice(0, 2).map((field) => clips.field(field, clip))];
    fill(this.about, make("strong", {}, clips.className(clip)), make("span", { class: "name" }, clips.name(clip)), make("br"), words.join(" · "));
    return this.rest();
  }

  // Still, in the middle of the clip, where most happens.
  rest() {
    const { player, gallery } = this;
    if (this.clip === null) return;
    if (gallery.playAll) return void player.play();
    player.pause();
    player.time = player.seconds / 2;
    player.draw();
  }

  enlarge() {
    if (this.clip !== null) this.gallery.enlarged.open(this.clip);
  }
}

class Enlarged {
  constructor(gallery) {
    this.gallery = gallery;
    this.player = new page.Player(gallery.clips.skeleton, { size: "large", controls: true });
    this.title = make("h3", { id: "enlarged-title" });
    this.facts = make("dl", { class: "facts" });
    const steps = make(
      "div",
      { class: "row" },
      button("← Previous", () => this.step(-1)),
      button("Next →", () => this.step(1)),
      button("Close", () => this.dialog.close(), { class: "quiet" }),
    );
    this.dialog = make("dialog", { class: "enlarged", "aria-labelledby": "enlarged-title" }, this.title, this.player.element, this.facts, steps);
    this.dialog.addEventListener("close", () => this.player.clear());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    document.body.append(this.dialog);
  }

  open(clip) {
    if (!this.dialog.open) this.dialog.showModal();
    const { clips, content } = this.gallery;
    this.clip = clip;
    this.title.textContent = clips.className(clip);
    this.player.show(clips.motion(clip), { seconds: clips.seconds(clip), index: clip, label: clips.describe(clip) });
    const { protocols, lengths } = content.store;
    const known = [
      ["name", clips.name(clip)],
      ["length", `${clips.seconds(clip).toFixed(2)} s, ${number(Math.round(clips.seconds(clip) * lengths.fps))} frames`],
      ["bodies", number(clips.motion(clip).bodies)],
      ...content.fields.map((field) => [field, String(clips.columns[field][clip])]),
      ...protocols.map(({ name, tests }) => [`part under ${name}`, tests[clip] ? "test" : "training"]),
    ];
    fill(this.facts, known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  step(by) {
    const { found } = this.gallery;
    const at = found.indexOf(this.clip);
    this.open(found[(at + by + found.length) % found.length]);
  }
}

// --- How many of what.

function counts(store, gallery) {
  const columns = Object.entries(store.by).filter(([, entries]) => entries.length);
  return {
    id: "counts",
    title: "How many of what",
    words: "Clips of each class and of each value of what else is known. Click a bar to see its clips.",
    build: (body) => {
      body.append(protocolTable(store));
      let of = 0;
      const redraws = [];
      if (store.protocols.length > 1) {
        const names = store.protocols.map(({ name }) => name);
        body.append(make("div", { class: "row" }, make("span", { class: "hint" }, "parts of"), segments("Protocol", names, 0, (n) => {
          of = n;
          redraws.forEach((redraw) => redraw());
        })));
      }
      const grid = body.appendChild(make("div", { class: "counts" }));
      for (const [name, entries] of columns) {
        const host = make("div", { class: "chart" });
        const card = make("div", { class: "card" }, make("h3", {}, `By ${name}`), make("p", { class: "hint" }, balance(entries)), make("div", { class: "scroll tall" }, host));
        grid.append(card);
        redraws.push(countChart(host, name, entries, store, () => of, gallery));
      }
    },
  };
}

function protocolTable({ protocols }) {
  const head = make("tr", {}, ["protocol", "training clips", "test clips"].map((text, n) => make("th", { class: n ? "figure" : null, scope: "col" }, text)));
  const rows = protocols.map(({ name, train, test }) =>
    make("tr", {}, make("td", {}, name), make("td", { class: "figure" }, number(train)), make("td", { class: "figure" }, number(test))),
  );
  return make("div", { class: "scroll protocols" }, make("table", {}, make("thead", {}, head), make("tbody", {}, rows)));
}

function balance(entries) {
  const known = entries.filter(([, value]) => value >= 0);
  if (known.length < 2) return `${plural(known.length, "value")}`;
  const [most, fewest] = [known.reduce((a, b) => (b[2] > a[2] ? b : a)), known.reduce((a, b) => (b[2] < a[2] ? b : a))];
  if (most[2] === fewest[2]) return `Balanced: ${plural(most[2], "clip")} each.`;
  const times = fewest[2] ? `, ${number(most[2] / fewest[2], 2)} times as many` : "";
  return `From ${number(fewest[2])} (${fewest[0]}) to ${number(most[2])} (${most[0]})${times}.`;
}

function countChart(host, name, entries, store, protocol, gallery) {
  host.style.height = `${Math.max(entries.length * 24 + 72, 120)}px`;
  const label = `Bars: clips by ${name}. ${balance(entries)}`;
  const option = () => {
    const part = store.protocols[protocol()];
    const tests = entries.map((entry) => entry[3][protocol()] ?? 0);
    const { series, soft } = page.colours();
    const bar = (words, data, colour, more) => ({
      type: "bar", name: words, stack: "clips", data, barMaxWidth: 14, itemStyle: { color: colour }, ...more,
    });
    const total = { show: true, position: "right", color: soft, formatter: ({ dataIndex: n }) => number(entries[n][2]) };
    return {
      grid: page.room({ right: 56, top: 32 }),
      legend: { top: 0, right: 0, itemWidth: 12, itemHeight: 12, textStyle: { color: soft }, selectedMode: false, formatter: page.plain },
      xAxis: page.valueAxis("", { minInterval: 1, splitNumber: 4 }),
      yAxis: page.categoryAxis(entries.map((entry) => entry[0]), { inverse: true, axisLabel: { interval: 0 } }),
      tooltip: page.tooltip(({ dataIndex: n }) => [
        entries[n][0],
        `${plural(entries[n][2], "clip")}`,
        ...(part ? [`${part.name}: ${number(entries[n][2] - tests[n])} train, ${number(tests[n])} test`] : []),
      ]),
      series: [
        bar("training", entries.map((entry, n) => entry[2] - tests[n]), series[0]),
        bar("test", tests, series[5], { label: total }),
      ],
    };
  };
  const { chart, redraw } = page.chart(host, `by-${name}`, option, label);
  chart.on("click", ({ dataIndex: n }) =>
    gallery.only((wanted) => {
      if (name === "class") wanted.class = entries[n][1];
      else wanted.fields[name] = entries[n][1];
    }),
  );
  return redraw;
}

function lengths({ lengths: { edges, counts: clips, fps }, bodies }, gallery) {
  return {
    id: "lengths",
    title: "Lengths and bodies",
    words: `Views are of one length, whatever that of a clip: long ones are seen quickly, short ones slowly. At ${number(fps)} frames a second; click a bar to see its clips.`,
    build: (body) => {
      const [long, people] = [make("div", { class: "chart" }), make("div", { class: "chart" })];
      const card = (title, host) => make("div", { class: "card" }, make("h3", {}, title), host);
      const one = bodies.length === 1 ? plural(bodies[0][0], "body", "bodies") : null;
      const second = one ? make("p", { class: "hint" }, `All clips have ${one}.`) : card("Bodies a clip", people);
      body.append(make("div", { class: one ? null : "columns" }, card("Frames a clip", long), second));
      const told = { edges, counts: clips, across: "frames", label: `Histogram of lengths, ${number(edges[0])} to ${number(edges.at(-1) - 1)} frames` };
      page.histogram(long, "lengths", told).chart.on("click", ({ dataIndex: n }) =>
        gallery.only((wanted) => (wanted.length = [edges[n], edges[n + 1]])),
      );
      if (one) return;
      const words = { names: bodies.map(([n]) => plural(n, "body", "bodies")), counts: bodies.map(([, n]) => n) };
      page.bars(people, "bodies", { ...words, across: "clips", label: "Bars: clips by bodies" }).chart.on("click", ({ dataIndex: n }) =>
        gallery.only((wanted) => (wanted.bodies = bodies[n][0])),
      );
    },
  };
}

// --- What was left out.

function skipped({ skipped: groups }) {
  const all = groups.reduce((sum, { count }) => sum + count, 0);
  return {
    id: "skipped",
    title: all ? `Left out: ${plural(all, "file")}` : "Nothing was left out",
    words: all ? "What the preparation did not take, and why; open a reason for the files." : "The preparation took every file that it found.",
    build: (body) => groups.forEach((group) => body.append(skippedGroup(group))),
  };
}

function skippedGroup({ reason, count, entries }) {
  const rows = entries.map(({ name, detail }) => make("tr", {}, make("td", {}, name), make("td", {}, detail)));
  const head = make("tr", {}, make("th", { scope: "col" }, "file"), make("th", { scope: "col" }, "what is wrong"));
  const more = count > entries.length ? make("p", { class: "hint" }, `and ${number(count - entries.length)} more`) : null;
  return make(
    "details",
    { class: "card" },
    make("summary", {}, make("strong", {}, reason), ` ${plural(count, "file")}`),
    make("div", { class: "scroll tall" }, make("table", {}, make("thead", {}, head), make("tbody", {}, rows)), more),
  );
}

// --- Views, as training makes them.

function views(content, clips) {
  const { store } = content;
  if (!store.views?.length) return null;
  return {
    id: "views",
    title: "Views, as training makes them",
    words:
      "A contrastive method never sees a clip itself: it learns that two views of a clip belong together. Each view is drawn anew at every step; here are real draws.",
    build: async (body) => {
      for (const view of store.views) view.motions = await page.unpack(view.motion, clips.skeleton.joints.length);
      new Views(store, clips).build(body);
    },
  };
}

class Views {
  constructor(store, clips) {
    Object.assign(this, { store, clips, chosen: 0, draw: 0 });
    this.camera = new page.Camera(clips.skeleton);
    this.panels = ["original", "basic", "strong"].map((name) => new Panel(name, this));
  }

  get view() {
    return this.store.views[this.chosen];
  }

  get draws() {
    return this.view.draws.length / 2;
  }

  build(body) {
    const names = this.store.views.map(({ clip }) => this.clips.describe(clip));
    this.said = make("span", { class: "hint", role: "status" });
    const again = button("Draw again", () => this.next(), { class: "primary" });
    const clip = choice("clip", names, 0, (n) => {
      Object.assign(this, { chosen: n, draw: 0 });
      this.show();
    });
    body.append(make("div", { class: "row" }, clip, again, this.said));
    body.append(make("div", { class: "views" }, this.panels.map((panel) => panel.element)));
    body.append(this.settings());
    this.show();
  }

  settings() {
    const rows = this.store.augment.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, value)));
    const summary = make("summary", {}, "The settings of these views: flags of train.run and of train.look");
    return make("details", { class: "card" }, summary, make("div", { class: "scroll" }, make("table", {}, make("tbody", {}, rows))));
  }

  next() {
    this.draw = (this.draw + 1) % this.draws;
    this.show();
  }

  // All three begin at once, are as long, and have one scale.
  show() {
    const { view, clips, draw } = this;
    this.said.textContent = `draw ${draw + 1} of the ${this.draws} that this page carries`;
    const of = (name) => view.draws.findIndex((each) => each.name === name && each.draw === draw);
    const [original, ...made] = this.panels;
    original.show(clips.motion(view.clip), null);
    for (const panel of made) {
      const n = of(panel.name);
      panel.show(view.motions[n], view.draws[n]);
    }
    const rooms = this.panels.map(({ player }) => player.room);
    const [radius, height] = ["radius", "height"].map((key) => Math.max(...rooms.map((room) => room[key])));
    rooms.forEach((room) => Object.assign(room, { radius, height }));
  }
}

const TITLES = {
  original: ["The clip", "as it is stored"],
  basic: ["Basic view", "cropped, then sheared or jittered"],
  strong: ["Strong view", "all that, and more"],
};

class Panel {
  constructor(name, views) {
    Object.assign(this, { name, views });
    this.player = new page.Player(views.clips.skeleton, { camera: views.camera, size: "large" });
    this.crop = make("div", { class: "crop-part" });
    this.changes = make("dl", { class: "changes" });
    const [title, words] = TITLES[name];
    this.element = make(
      "div",
      { class: "card view", "data-view": name },
      make("h3", {}, title),
      make("p", { class: "hint" }, words),
      this.player.element,
      make("div", { class: "crop", role: "img", "aria-label": "The part of the clip that is seen" }, this.crop),
      this.changes,
    );
  }

  show(clip, draw) {
    const { view, clips } = this.views;
    const label = `${TITLES[this.name][0]} of ${clips.describe(view.clip)}`;
    this.player.show(clip, { seconds: clips.seconds(view.clip), index: view.clip, label });
    const [first, length] = draw?.crop ?? [0, view.frames];
    this.crop.style.marginLeft = `${(100 * first) / view.frames}%`;
    this.crop.style.width = `${(100 * length) / view.frames}%`;
    fill(this.changes, draw ? this.list(new Map(draw.parameters)) : this.whole());
  }

  whole() {
    const { view, clips } = this.views;
    const facts = [["class", clips.className(view.clip)], ["name", clips.name(view.clip)], ["frames", number(view.frames)]];
    return facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }

  list(parameters) {
    const possible = this.views.store.explained.filter(([, , strongOnly]) => !strongOnly || this.name === "strong");
    return possible.map(([name, sentence]) => {
      const here = parameters.has(name);
      const says = here ? parameters.get(name) : "not in this draw";
      return make("div", { class: here ? "there" : "absent" }, make("dt", {}, name), make("dd", {}, says), make("dd", { class: "hint" }, sentence));
    });
  }
}
