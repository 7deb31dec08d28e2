// Views of some clips, as training makes them: real draws, each with what it does.

const page = window.fastmcPage;
const { make, fill, button, choice, number } = page;

function views(content, clips) {
  const { store } = content;
  if (!store.views?.length) return null;
  return {
    id: "views",
    title: "Views, as training makes them",
    words:
      "A contrastive method never sees a clip itself: it learns that two views of a clip belong together. Each view is " +
      "drawn anew at every step; here are real draws.",
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
    body.append(
      make(
        "div",
        { class: "views" },
        this.panels.map((panel) => panel.element),
      ),
    );
    body.append(this.settings());
    this.show();
  }

  settings() {
    const summary = make("summary", {}, "The settings of these views: flags of train.run and of train.look");
    const table = page.table({ rows: this.store.augment, label: "Settings of the views" });
    return make("details", { class: "card" }, summary, table);
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
    const size = [0, 1, 2].map((n) => Math.max(...rooms.map((room) => room.size[n])));
    rooms.forEach((room) => Object.assign(room, { size }));
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
    const facts = [
      ["class", clips.className(view.clip)],
      ["name", clips.name(view.clip)],
      ["frames", number(view.frames)],
    ];
    return facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }

  list(parameters) {
    const possible = this.views.store.explained.filter(([, , strongOnly]) => !strongOnly || this.name === "strong");
    return possible.map(([name, sentence]) => {
      const here = parameters.has(name);
      const says = here ? parameters.get(name) : "not in this draw";
      return make(
        "div",
        { class: here ? "there" : "absent" },
        make("dt", {}, name),
        make("dd", {}, says),
        make("dd", { class: "hint" }, sentence),
      );
    });
  }
}

Object.assign(page, { views });
