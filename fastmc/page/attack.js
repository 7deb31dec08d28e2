// The attack of the method: a clip before it and after, at any strength. The slider begins at a clip's `own`, the norm in
// metres that the run's own attack takes on it.

const page = window.fastmcPage;
const { make, fill, button, number, colours } = page;

const TIMES = [1, 5, 20];

// How far the joint that moves farthest moves, metres, where the perturbation has a norm of 1 m.
function farthest(rho) {
  let most = 0;
  for (let n = 0; n < rho.xyz.length; n += 3)
    most = Math.max(most, Math.hypot(rho.xyz[n], rho.xyz[n + 1], rho.xyz[n + 2]));
  return most;
}

// Where the axis of entropies begins, and what it could reach.
function axisWords({ classes }) {
  const axis = "The axis of entropy does not begin at 0.";
  if (!page.isThere(classes)) return axis;
  return `${axis} The most there can be is ln ${classes} = ${number(Math.log(classes))} nats.`;
}

class AttackSection {
  constructor(body, run, motions, clips, id) {
    Object.assign(this, { run, clips, motions, times: 1 });
    this.entries = run.attack.clips;
    this.player = new page.Player(clips.skeleton, { size: "large", controls: true });
    this.slider = make("input", { type: "range", min: 0, step: 1, value: 0, "aria-label": "Strength of the attack" });
    this.slider.addEventListener("input", () => this.set(Number(this.slider.value)));
    this.words = make("p", { class: "attack-words", "aria-live": "polite" });
    this.host = make("div", { class: "chart" });
    this.title = make("div", { class: "caption" });
    this.lay(body, run);
    this.pick(0);
    this.drawn = page.chart(
      this.host,
      `attack ${id}`,
      () => this.option(),
      "Entropy by strength of the attack, as a line",
    );
    this.drawn.chart.getZr().on("click", ({ offsetX }) => this.setNearest(offsetX));
  }

  lay(body, run) {
    const names = this.entries.map(({ clip }) => page.shorten(this.clips.describe(clip), 60));
    const picker = names.length > 1 ? page.choice("Clip", names, 0, (n) => this.pick(n)) : null;
    const times = page.segments(
      "Show the shift",
      TIMES.map((n) => (n === 1 ? "as it is" : `×${n}`)),
      0,
      (n) => {
        this.times = TIMES[n];
        this.set(this.step);
      },
    );
    const strength = make(
      "label",
      { class: "strength" },
      make("span", { class: "hint" }, "none"),
      this.slider,
      make("span", { class: "hint" }, "strongest"),
    );
    const controls = make(
      "div",
      {},
      make("h3", {}, "Strength"),
      strength,
      this.words,
      make("div", { class: "row" }, make("span", { class: "hint" }, "Show the shift"), times),
    );
    const chart = make("div", {}, make("h3", {}, "Entropy of the random layer's shares (nats)"), this.host);
    chart.append(make("p", { class: "hint" }, axisWords(run.attack)));
    const left = make("div", { class: "card tall" }, this.player.element, this.title);
    body.append(
      picker ? make("div", { class: "row toolbar" }, picker) : "",
      make(
        "div",
        { class: "columns" },
        left,
        make(
          "div",
          { class: "card stack" },
          controls,
          chart,
          run.attack.says ? make("p", { class: "hint" }, run.attack.says) : null,
        ),
      ),
    );
  }

  pick(n) {
    this.entry = this.entries[n];
    [this.before, this.rho] = this.motions.slice(2 * n, 2 * n + 2);
    const { clip, steps } = this.entry;
    this.reach = farthest(this.rho);
    this.slider.max = steps.length - 1;
    const { clips } = this;
    fill(
      this.title,
      make("strong", { class: "name" }, clips.className(clip)),
      make("div", { class: "name" }, clips.name(clip)),
      make("div", {}, "grey: before; in colour: after"),
    );
    this.player.show(this.before, {
      seconds: clips.seconds(clip),
      index: clip,
      label: `${clips.describe(clip)}, attacked,`,
      ghost: this.before,
      still: page.calm,
    });
    this.set(this.nearest(this.entry.own));
  }

  nearest(norm) {
    const away = this.entry.steps.map((step) => Math.abs(step - norm));
    return away.indexOf(Math.min(...away));
  }

  set(step) {
    const { steps, entropy, own } = this.entry;
    this.step = step;
    this.slider.value = step;
    const norm = steps[step];
    const asInTraining = step === this.nearest(own) ? ", as in training" : "";
    this.slider.setAttribute("aria-valuetext", `${number(norm)} m${asInTraining}`);
    this.player.swap(page.moved(this.before, this.rho, norm * this.times));
    const most = `${number(1000 * norm * this.reach, 2)} mm`;
    const shift = `The perturbation's norm is ${number(norm)} m${asInTraining}; no joint moves farther than ${most}`;
    const times = this.times === 1 ? "." : `, shown ${this.times} times as far.`;
    const sureness = `Entropy ${number(entropy[0])} nats before, ${number(entropy[step])} now.`;
    fill(this.words, `${shift}${times} ${sureness}`);
    this.drawn?.redraw();
  }

  setNearest(x) {
    const [norm] = this.drawn.chart.convertFromPixel({ seriesIndex: 0 }, [x, 0]);
    this.set(this.nearest(norm));
  }

  markOfTraining() {
    const { faint, soft } = colours();
    const label = { formatter: () => "as in training", color: soft, fontSize: 11, position: "end" };
    const lineStyle = { color: faint, type: "dotted", width: 1.5 };
    return { symbol: "none", silent: true, lineStyle, data: [{ xAxis: this.entry.own, label }] };
  }

  option() {
    const { steps, entropy } = this.entry;
    const { accent, right, card } = colours();
    return {
      grid: page.room({ bottom: 26, top: 24 }),
      xAxis: page.valueAxis("norm of the perturbation (m)"),
      yAxis: page.valueAxis("", { scale: true, splitNumber: 3 }),
      tooltip: page.tooltip(([{ value }]) => [`norm ${number(value[0])} m`, `entropy ${number(value[1])} nats`], {
        trigger: "axis",
      }),
      series: [
        {
          type: "line",
          data: steps.map((norm, n) => [norm, entropy[n]]),
          symbolSize: 6,
          lineStyle: { color: accent, width: 2 },
          itemStyle: { color: accent },
          markLine: this.markOfTraining(),
        },
        {
          type: "scatter",
          silent: true,
          z: 3,
          data: [[steps[this.step], entropy[this.step]]],
          symbolSize: 14,
          itemStyle: { color: right, borderColor: card, borderWidth: 2 },
        },
      ],
    };
  }
}

function attack(content, clips) {
  const runs = content.runs.filter((run) => run.attack?.clips.length);
  if (!runs.length || !clips) return null;
  return {
    id: "attack",
    title: "Attack",
    words:
      "In training, clips are shifted a little. A layer of fixed random weights turns the encoder's features of a " +
      "clip into shares, and the shift is in the direction that makes these shares more even; their entropy says how even " +
      "they are. The layer is never trained and knows no class. Move the slider to make the shift stronger.",
    build: (body) => {
      const parts = runs.map(() => make("div", { hidden: true }));
      const show = async (n) => {
        parts.forEach((part, k) => (part.hidden = k !== n));
        if (parts[n].hasChildNodes()) return;
        const motions = await page.unpack(runs[n].attack.motion, clips.skeleton.joints.length);
        if (!parts[n].hasChildNodes()) new AttackSection(parts[n], runs[n], motions, clips, n);
      };
      body.append(page.runPicker(runs, show) ?? "", ...parts);
      return show(0);
    },
  };
}

Object.assign(page, { attack });
