// Which classes are taken for which, and the clips that were.

const page = window.fastmcPage;
const { make, fill, button, number, percent, colours } = page;

const MOST_NUMBERS = 14; // classes whose cells hold their percentages
const MOST_NAMES = 40;
const DARK_SHARE = 45; // percent; a figure on a cell of more is light on dark, or dark on light where the page is dark

function countsOf({ true: truth, predicted }, classes) {
  const counts = Array.from({ length: classes }, () => new Int32Array(classes));
  truth.forEach((row, n) => {
    if (counts[row]?.[predicted[n]] !== undefined) counts[row][predicted[n]] += 1;
  });
  return counts;
}

const sum = (row) => row.reduce((total, value) => total + value, 0);

class ConfusionSection {
  constructor(body, runs, clips, classes) {
    Object.assign(this, { runs, clips, classes });
    this.camera = new page.Camera(clips.skeleton);
    this.shelf = new page.Shelf(clips, this.camera, 6);
    this.title = make("h3", { "aria-live": "polite" });
    this.words = make("p", { class: "hint" });
    this.list = make("div", { class: "classes", role: "list", "aria-label": "Classes, the least recognised first" });
    this.by = make("p", { class: "hint" });
    this.host = make("div", { class: "chart confusion" });
    const matrix = make("div", { class: "card" }, make("h3", {}, "Which class is taken for which"), this.host, this.by);
    const list = make(
      "div",
      { class: "card class-list" },
      make("h3", {}, "Classes, the least recognised first"),
      this.list,
    );
    this.panel = make(
      "div",
      { class: "card found", "data-part": "confused" },
      this.title,
      this.words,
      this.shelf.element,
    );
    body.append(
      page.runPicker(runs, (n) => this.use(n)) ?? "",
      make("div", { class: "columns matrix" }, matrix, this.panel),
      list,
    );
    this.cursor = [0, 0];
    this.load(0);
    this.drawn = page.chart(
      this.host,
      "confusions",
      () => this.option(),
      "Heat map of confusions. Arrow keys go from cell to cell, Enter plays its clips.",
    );
    this.drawn.chart.on("click", ({ value }) => value && this.cell(value[1], value[0]));
    this.host.tabIndex = 0;
    page.onKeys(this.host, (key) => this.press(key));
    this.commonest();
  }

  load(n) {
    const { predictions } = this.runs[n];
    this.predictions = predictions;
    this.counts = countsOf(predictions, this.classes.length);
    this.totals = this.counts.map(sum);
    const right = sum(this.counts.map((row, c) => row[c]));
    const by = predictions.by ? `, by the ${predictions.by}` : "";
    fill(
      this.by,
      `${number(right)} of ${number(sum(this.totals))} clips are recognised${by}. `,
      "Rows are true classes, columns what they were taken for.",
    );
    this.drawList();
  }

  use(n) {
    this.load(n);
    this.drawn.redraw();
    this.commonest();
  }

  share(row, column) {
    return this.totals[row] ? (100 * this.counts[row][column]) / this.totals[row] : null;
  }

  option() {
    const { classes } = this;
    const { card, accent, scale } = colours();
    const data = [];
    this.counts.forEach((row, r) => row.forEach((count, c) => data.push(this.item(r, c))));
    const names = classes.length <= MOST_NAMES ? { interval: 0 } : {};
    const numbers = classes.length <= MOST_NUMBERS;
    return {
      grid: page.room({ left: 4, top: 4, right: 4 }),
      xAxis: page.categoryAxis(classes, {
        longest: 18,
        axisLabel: { ...names, rotate: classes.length > 4 ? 45 : 0, fontSize: 11 },
      }),
      yAxis: page.categoryAxis(classes, { inverse: true, longest: 22, axisLabel: { ...names, fontSize: 11 } }),
      visualMap: {
        show: false,
        min: 0,
        max: 10,
        inRange: { color: scale },
        outOfRange: { color: colours().line },
        dimension: 2,
      },
      tooltip: page.tooltip(({ value: [c, r] }) => this.say(r, c)),
      series: [
        {
          type: "heatmap",
          data,
          itemStyle: { borderColor: card, borderWidth: classes.length > 40 ? 0 : 1 },
          emphasis: { itemStyle: { borderColor: accent, borderWidth: 2 } },
          label: {
            show: numbers,
            fontSize: 11,
            formatter: ({ value: [c, r] }) => (this.counts[r][c] ? this.share(r, c).toFixed(0) : ""),
          },
        },
        {
          type: "scatter",
          silent: true,
          symbol: "rect",
          symbolSize: () => this.cellSize(),
          z: 3,
          itemStyle: { color: "transparent", borderColor: colours().right, borderWidth: 2.5 },
          data: this.open ? [[this.open[1], this.open[0]]] : [],
        },
      ],
    };
  }

  // A cell's colour goes by the square root of its share, so that a confusion of a few percent is seen.
  item(r, c) {
    const share = this.share(r, c);
    const { ink, card } = colours();
    const value = [c, r, share === null ? -1 : Math.sqrt(share)];
    return { value, label: { color: share > DARK_SHARE ? card : ink } };
  }

  cellSize() {
    const at = (n) => this.drawn?.chart.convertToPixel({ seriesIndex: 0 }, [n, n]) ?? [0, 0];
    const [a, b] = [at(0), at(1)];
    return [Math.abs(b[0] - a[0]), Math.abs(b[1] - a[1])];
  }

  say(r, c) {
    const { classes, counts, totals } = this;
    const what = r === c ? `${classes[r]}: recognised` : `${classes[r]}, taken for ${classes[c]}`;
    return [what, `${counts[r][c]} of ${totals[r]} clips, ${percent(this.share(r, c))}`];
  }

  press(key) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    if (move) {
      this.cursor = this.cursor.map((at, n) => Math.min(Math.max(at + move[n], 0), this.classes.length - 1));
      const [r, c] = this.cursor;
      this.drawn.chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: r * this.classes.length + c });
      this.host.setAttribute("aria-label", this.say(r, c).join(": "));
    } else if (key === "Enter") this.cell(...this.cursor);
    else return false;
  }

  // The section begins with the commonest confusion, so that one sees what a press shows.
  commonest() {
    let best = [0, 0];
    let most = 0;
    this.counts.forEach((row, r) =>
      row.forEach((count, c) => {
        if (r !== c && count > most) [best, most] = [[r, c], count];
      }),
    );
    if (most) this.cell(...best);
    else this.found([], "No clip is taken for one of another class.", "");
  }

  cell(r, c) {
    this.open = [r, c];
    this.mark(null);
    this.cursor = [r, c];
    this.drawn.redraw();
    const [what, share] = this.say(r, c);
    this.found(
      this.which((truth, predicted) => truth === r && predicted === c),
      what,
      share,
    );
  }

  which(wanted) {
    const { true: truth, predicted, clip } = this.predictions;
    return clip.flatMap((i, n) => (wanted(truth[n], predicted[n]) ? [{ i, predicted: predicted[n] }] : []));
  }

  mistakesOf(c) {
    this.open = null;
    this.drawn.redraw();
    const wrong = this.which((truth, predicted) => truth === c && predicted !== c);
    const share = `${wrong.length} of ${this.totals[c]} clips, ${percent((100 * wrong.length) / this.totals[c])}`;
    this.found(wrong, `${this.classes[c]}, taken for another class`, share);
    this.mark(c);
    const fits = this.panel.offsetHeight < 0.85 * innerHeight;
    (fits ? this.panel : this.title).scrollIntoView({ block: "nearest" });
  }

  // The row of the list whose clips are shown.
  mark(c) {
    this.rows.forEach((row, of) => row.setAttribute("aria-pressed", of === c));
  }

  found(which, title, share) {
    const { clips, shelf } = this;
    const carried = which.filter(({ i }) => i >= 0);
    const taken = new Map(carried.map(({ i, predicted }) => [i, predicted]));
    fill(this.title, title);
    const some = carried.length < which.length ? ` This page carries ${number(carried.length)} of them.` : "";
    fill(this.words, share ? `${share}.${some}` : "");
    shelf.show([...taken.keys()], (i) => {
      const isRight = taken.get(i) === clips.classOf(i);
      return {
        lines: [
          clips.name(i),
          page.verdict(isRight, isRight ? "recognised" : `taken for ${clips.nameOfClass(taken.get(i))}`),
        ],
      };
    });
  }

  drawList() {
    const rows = this.classes
      .map((name, c) => ({ name, c, right: this.share(c, c) }))
      .filter(({ right }) => right !== null)
      .sort((a, b) => a.right - b.right);
    this.rows = new Map();
    fill(
      this.list,
      rows.map(({ name, c, right }) => {
        const bar = make("span", { class: "share" }, make("span", { style: `width: ${right}%` }));
        const line = [make("span", { class: "name" }, name), bar, make("span", { class: "figure" }, percent(right, 0))];
        const press = button("", () => this.mistakesOf(c), {
          class: "quiet class",
          "aria-pressed": false,
          title: `Play the clips of ${name} that were not recognised`,
        });
        this.rows.set(c, press);
        return make("div", { role: "listitem" }, fill(press, line));
      }),
    );
  }
}

function confusions(content, clips) {
  const runs = content.runs.filter((run) => run.predictions);
  if (!clips) return null;
  return {
    id: "confusions",
    title: "Confusions",
    words:
      "Which actions look alike to the encoder. Click a cell, or a class of the list, and the clips that were confused " +
      "play beside it.",
    build: (body) => {
      if (runs.length) new ConfusionSection(body, runs, clips, content.classes);
      else
        body.append(
          make(
            "p",
            { class: "empty" },
            "Nothing here yet: a classifier's predictions come with the linear evaluation of a run.",
          ),
        );
    },
  };
}

Object.assign(page, { confusions });
