// The clips of a store: a few at a time, filtered, and enlarged.
//
//   new Gallery(content, clips)    section(); only(change) shows those that a bar of another section stands for, and no
//                                  others: change({class, fields, split, bodies, length, words})
//   mixed(indices, clips)          in an order of one clip of every class, then another one of every class, and so on

const page = window.fastmcPage;
const { make, fill, button, choice, number, plural } = page;

const SHOWN = 12; // clips in the grid at once
const DRAGGED = 5; // pixels that a click may wander

class Gallery {
  constructor(content, clips) {
    Object.assign(this, { content, clips, at: 0, playAll: false });
    this.wanted = { class: null, fields: {}, split: null, bodies: null, length: null, words: "" };
    this.camera = new page.Camera(clips.skeleton);
  }

  section() {
    return {
      id: "clips",
      title: "Clips",
      words: page.touch
        ? "Tap a clip to play it large; there, drag to turn it."
        : "Hover, or move the focus there, to play; click to enlarge; drag to turn all of them.",
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
    this.pager = body.appendChild(make("div", { class: "row pager" }, this.back, this.on));
    this.enlarged = new Enlarged(this);
    this.makeFilters();
    this.choose();
  }

  // Made once: a list that were made anew at each change would lose the focus.
  makeFilters() {
    const { content, wanted } = this;
    const { store, classes, fields } = content;
    const splits = store.protocols.flatMap(({ name }, n) => [
      [`${name}: training`, [n, 0]],
      [`${name}: test`, [n, 1]],
    ]);
    const bodies = store.bodies.map(([count]) => [plural(count, "body", "bodies"), count]);
    const withClips = classes.length ? store.by.class.filter(([, , count]) => count) : [];
    this.lists = [
      classes.length ? this.list("class", withClips, wanted) : null,
      ...fields.map((field) => this.list(field, store.by[field], wanted.fields)),
      this.list("part", splits, wanted, "split"),
      store.bodies.length > 1 ? this.list("bodies", bodies, wanted) : null,
    ].filter(Boolean);
    this.search = this.searchBox();
    this.ofLength = make("span", { hidden: true });
    const clear = button("Clear", () => this.clear(), { class: "quiet" });
    const lists = this.lists.map(({ element }) => element);
    fill(this.filters, lists, this.ofLength, this.search, clear);
  }

  // A list of entries [name, value, ...], of which one is of[key], or all of them.
  list(label, entries, of, key = label) {
    const take = (n) => this.want(() => (of[key] = entries[n - 1]?.[1] ?? null));
    const element = choice(label, ["all", ...entries.map(([name]) => name)], 0, take);
    const select = element.querySelector("select");
    const at = () => entries.findIndex(([, value]) => String(value) === String(of[key]));
    return { element, update: () => (select.selectedIndex = 1 + at()) };
  }

  searchBox() {
    const search = make("input", { type: "search", placeholder: "part of a name", "aria-label": "Search by name" });
    search.addEventListener("input", () => {
      this.wanted.words = search.value;
      this.choose();
    });
    return search;
  }

  updateFilters() {
    const { words, length } = this.wanted;
    this.lists.forEach(({ update }) => update());
    if (this.search.value !== words) this.search.value = words;
    this.ofLength.hidden = !length;
    fill(this.ofLength, length ? this.lengthButton(length) : null);
  }

  lengthButton([low, high]) {
    const words = `${number(low)} – ${number(high - 1)} frames ×`;
    const drop = () => {
      this.want(() => (this.wanted.length = null));
      this.search.focus();
    };
    return button(words, drop, { "aria-label": `Clips of any length, not of ${words}` });
  }

  want(change) {
    change();
    this.updateFilters();
    this.choose();
  }

  clear() {
    const { wanted } = this;
    this.want(() => {
      for (const field of Object.keys(wanted.fields)) wanted.fields[field] = null;
      Object.assign(wanted, { class: null, split: null, bodies: null, length: null, words: "" });
    });
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
      content.fields.every(
        (field) => !page.isThere(wanted.fields[field]) || columns[field][i] === wanted.fields[field],
      ) &&
      (wanted.split === null || protocols[wanted.split[0]].tests[i] === wanted.split[1]) &&
      (wanted.bodies === null || clips.motion(i).bodies === wanted.bodies) &&
      (wanted.length === null || (frames >= wanted.length[0] && frames < wanted.length[1])) &&
      columns.name[i].toLowerCase().includes(wanted.words.trim().toLowerCase())
    );
  }

  choose() {
    this.found = mixed(
      Array.from({ length: this.clips.length }, (_, i) => i).filter((i) => this.suits(i)),
      this.clips,
    );
    this.turnTo(0);
  }

  turnTo(at) {
    this.at = Math.min(Math.max(at, 0), Math.max(this.found.length - 1, 0));
    const here = this.found.slice(this.at, this.at + SHOWN);
    this.cards.forEach((card, n) => card.show(here[n] ?? null));
    this.pager.hidden = this.found.length <= SHOWN;
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
  return named.length
    ? make(
        "span",
        { class: "sides" },
        named.map((side) => make("span", { class: side }, side)),
      )
    : null;
}

// Names often begin with the class, and would bring one class alone.
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
    const words = [
      `${clips.seconds(clip).toFixed(1)} s`,
      ...this.gallery.content.fields.slice(0, 2).map((field) => clips.field(field, clip)),
    ];
    fill(
      this.about,
      make("strong", {}, clips.className(clip)),
      make("span", { class: "name" }, clips.name(clip)),
      make("br"),
      words.join(" · "),
    );
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
    this.dialog = make(
      "dialog",
      { class: "enlarged", "aria-labelledby": "enlarged-title" },
      this.title,
      this.player.element,
      this.facts,
      steps,
    );
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
      [
        "length",
        `${clips.seconds(clip).toFixed(2)} s, ${number(Math.round(clips.seconds(clip) * lengths.fps))} frames`,
      ],
      ["bodies", number(clips.motion(clip).bodies)],
      ...content.fields.map((field) => [field, String(clips.columns[field][clip])]),
      ...protocols.map(({ name, tests }) => [`part under ${name}`, tests[clip] ? "test" : "training"]),
    ];
    fill(
      this.facts,
      known.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
  }

  step(by) {
    const { found } = this.gallery;
    const at = found.indexOf(this.clip);
    this.open(found[(at + by + found.length) % found.length]);
  }
}

Object.assign(page, { Gallery, mixed });
