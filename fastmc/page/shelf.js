// Clips side by side.
//
//   clipCard(clips, camera, i, {title, lines, still})   a small player with a title (its class) and lines beneath (its
//                                  name); lines are text or elements. Returns {element, player}
//   verdict(isRight, words)        a line with a tick or a cross, which need no colour to be told apart
//   new Shelf(clips, camera, step) a grid of cards of which `step` play at first, and more at a press
//     element, show(indices, cardOf), clear()           cardOf(i) gives the options of clipCard

const page = window.fastmcPage;
const { make, fill, button } = page;

function clipCard(clips, camera, i, { title = clips.className(i), lines = [clips.name(i)], still = false } = {}) {
  const player = new page.Player(clips.skeleton, { camera });
  const motion = clips.motion(i);
  if (motion) player.show(motion, { seconds: clips.seconds(i), index: i, label: clips.describe(i), still });
  else player.clear("This clip's motion is not in the page.");
  const below = lines.map((line) => (typeof line === "string" ? make("div", {}, line) : line));
  const about = make("div", { class: "about" }, make("strong", {}, title), below);
  return { element: make("article", { class: "clip", "data-clip": i }, player.element, about), player };
}

function verdict(isRight, words) {
  return make("div", { class: isRight ? "verdict right" : "verdict wrong" }, `${isRight ? "✓" : "✗"} ${words}`);
}

class Shelf {
  constructor(clips, camera, step = 12) {
    Object.assign(this, { clips, camera, step, cards: [] });
    this.grid = make("div", { class: "clips" });
    this.rest = make("div", { class: "row more" });
    this.element = make("div", {}, this.grid, this.rest);
  }

  show(indices, cardOf = () => ({})) {
    this.clear();
    Object.assign(this, { indices, cardOf });
    this.more();
  }

  more() {
    const { indices, cards } = this;
    for (const i of indices.slice(cards.length, cards.length + this.step)) {
      const card = page.clipCard(this.clips, this.camera, i, this.cardOf(i));
      cards.push(card);
      this.grid.append(card.element);
    }
    const left = indices.length - cards.length;
    fill(this.rest, left > 0 ? button(left > this.step ? `${this.step} more of ${left}` : `${left} more`, () => this.more()) : null);
  }

  clear() {
    this.cards.forEach(({ player }) => player.destroy());
    this.cards = [];
    fill(this.grid);
    fill(this.rest);
  }
}

Object.assign(page, { clipCard, verdict, Shelf });
