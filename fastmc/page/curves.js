// How training went: a chart for each kind of quantity, all with the same epochs.

const page = window.fastmcPage;
const { make, fill, button, number, colours } = page;

const POINT_AT = "Point at a name to read what it is; press it to hide its line, or show it.";

function markLine(panel, full) {
  const { faint, soft } = colours();
  const label = (text, position) => ({ formatter: () => text, color: soft, fontSize: 11, position });
  const epochs = panel.lines.flatMap(({ x }) => x);
  const middle = (Math.min(...epochs) + Math.max(...epochs)) / 2;
  // Beside its line, towards the middle: about it, it would lie on the figures of the axis.
  const beside = (epoch) => ({ ...label("bank full", "end"), align: epoch < middle ? "left" : "right" });
  const data = full.map((epoch) => ({ xAxis: epoch, label: beside(epoch) }));
  if (panel.mark) data.push({ yAxis: panel.mark.y, label: label(panel.mark.text, "insideStartTop") });
  return { symbol: "none", silent: true, lineStyle: { color: faint, type: "dotted", width: 1.5 }, data };
}

// A zoomed axis ends where it ends, between two epochs.
const wholeEpochs = () => ({
  color: colours().soft,
  hideOverlap: true,
  formatter: (epoch) => (Number.isInteger(epoch) ? number(epoch) : ""),
});

const panelOf = (run, title) => run.panels?.find((panel) => panel.title === title);

function seriesOf({ title }, runs, names, hidden) {
  const several = runs.length > 1;
  return runs.flatMap((run, r) => {
    return (panelOf(run, title)?.lines ?? []).map((line) => {
      const n = names.indexOf(line.name);
      // One run's lines differ in colour; of several runs a group has a colour, a name a dash.
      const colour = page.seriesColour(several ? run.group : n);
      const dash = page.line(several ? 8 * n : n).type;
      const off = hidden.has(`line ${line.name}`) || hidden.has(`run ${r}`);
      return {
        type: "line",
        name: several ? `${line.name}, ${run.label}` : line.name,
        data: off ? [] : line.x.map((x, n) => [x, line.y[n]]),
        symbol: "circle",
        symbolSize: 5,
        showSymbol: line.x.length < 3,
        lineStyle: { color: colour, type: dash, width: 2 },
        itemStyle: { color: colour },
        emphasis: { disabled: true },
      };
    });
  });
}

function draw(host, panel, runs, names, hidden) {
  const full = [...new Set(runs.map((run) => run.bank_full).filter(page.isThere))];
  const option = () => {
    const series = seriesOf(panel, runs, names, hidden);
    if (series.length) series[0].markLine = markLine(panel, full);
    return {
      grid: page.room({ bottom: 28, top: 22 }),
      xAxis: page.valueAxis("epoch", {
        scale: true,
        min: "dataMin",
        max: "dataMax",
        splitLine: { show: false },
        minInterval: 1,
        axisLabel: wholeEpochs(),
      }),
      yAxis: page.valueAxis("", { scale: !panel.zero, splitNumber: 4 }),
      dataZoom: [
        { type: "inside", xAxisIndex: 0, zoomOnMouseWheel: "ctrl", moveOnMouseMove: false, moveOnMouseWheel: false },
      ],
      toolbox: {
        show: true,
        top: -60,
        feature: { dataZoom: { yAxisIndex: "none", brushStyle: { color: colours().accent, opacity: 0.15 } } },
      },
      tooltip: page.tooltip(
        (params) =>
          !params.length
            ? []
            : [
                `epoch ${number(params[0].axisValue)}`,
                ...params.map(({ seriesName, value }) => `${seriesName}: ${number(value[1], 4)}`),
              ],
        { trigger: "axis", axisPointer: { lineStyle: { color: colours().faint }, label: { show: false } } },
      ),
      series,
    };
  };
  const name = `curve ${panel.title}`;
  const drawn = page.chart(host, name, option, `${panel.title} by epoch, as lines`);
  const { chart } = drawn;
  const select = () =>
    page.touch || chart.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
  const redraw = () => {
    drawn.redraw();
    select();
  };
  select();
  page.onTheme(select);
  host.addEventListener("dblclick", () => zoom(chart, 0, 100));
  zoomByKeys(host, chart);
  chart.group = "curves";
  return { chart, redraw };
}

const zoom = (chart, start, end) => chart.dispatchAction({ type: "dataZoom", start, end });

// Plus and minus zoom about the middle, arrows move along, 0 shows all.
function zoomByKeys(host, chart) {
  host.tabIndex = 0;
  page.onKeys(host, (key) => {
    const { start, end } = chart.getOption().dataZoom[0];
    const quarter = (end - start) / 4;
    const to = {
      "+": [start + quarter, end - quarter],
      "-": [start - 2 * quarter, end + 2 * quarter],
      ArrowLeft: [Math.max(start - quarter, 0), Math.max(end - quarter, 4 * quarter)],
      ArrowRight: [Math.min(start + quarter, 100 - 4 * quarter), Math.min(end + quarter, 100)],
      0: [0, 100],
    }[key];
    if (!to) return false;
    zoom(chart, Math.max(to[0], 0), Math.min(to[1], 100));
  });
}

// A legend of buttons: told by focus or pointer what each is, pressed to hide it.
function legend(entries, hidden, changed, help) {
  const chips = entries.map(({ key, name, words, colour, dash }) => {
    const stroke = make("span", { class: "stroke", style: `border-top: 3px ${dash} ${colour}` });
    const press = () => {
      if (hidden.has(key)) hidden.delete(key);
      else hidden.add(key);
      chip.setAttribute("aria-pressed", !hidden.has(key));
      changed();
    };
    const chip = button(name, press, { "aria-pressed": !hidden.has(key), title: words });
    chip.prepend(stroke);
    const tell = () => words && fill(help, make("strong", {}, name), ` ${words}`);
    for (const event of ["mouseenter", "focus"]) chip.addEventListener(event, tell);
    return chip;
  });
  return make("div", { class: "legend strokes" }, chips);
}

const cssDash = (dash) => (dash === "solid" ? "solid" : Array.isArray(dash) && dash[0] > 2 ? "dashed" : "dotted");

// A panel without a point says why in the place of a chart.
function panelCard(panel, runs, hiddenRuns) {
  const several = runs.length > 1;
  const title = make("h3", {}, panel.title);
  const panels = runs.map((run) => panelOf(run, panel.title)).filter(Boolean);
  const all = panels.flatMap(({ lines }) => lines);
  if (!all.some(({ x }) => x.length)) {
    const why = panels.map((each) => each.why).find(Boolean) ?? "Not measured in any epoch so far.";
    return { card: make("div", { class: "card" }, title, make("p", { class: "empty" }, why)) };
  }
  const lines = new Map(all.map(({ name, help }) => [name, help]));
  const names = [...lines.keys()];
  const host = make("div", { class: "chart curve" });
  const help = make("p", { class: "help" }, POINT_AT);
  const entries = names.map((name, n) => {
    const { colour, dash } = several
      ? { colour: "var(--soft)", dash: page.line(8 * n).type }
      : { colour: `var(--series-${n % 8})`, dash: page.line(n).type };
    return { key: `line ${name}`, name, words: lines.get(name), colour, dash: cssDash(dash) };
  });
  let drawn = null;
  const first = new Set(panels.map((each) => each.lines[0]?.name));
  const hidden = new Set(several ? names.filter((name) => !first.has(name)).map((name) => `line ${name}`) : []);
  const both = { has: (key) => hidden.has(key) || hiddenRuns.has(key) };
  const chips = legend(entries, hidden, () => drawn.redraw(), help);
  const card = make("div", { class: "card" }, title, host, chips, help);
  return { card, start: () => (drawn = draw(host, panel, runs, names, both)) };
}

function build(body, { runs: all, groups }) {
  const runs = all.map((run, n) => ({ ...run, group: groups.findIndex((group) => group.runs.includes(n)) }));
  const titles = new Map();
  runs.forEach((run) => run.panels?.forEach((panel) => titles.has(panel.title) || titles.set(panel.title, panel)));
  const hiddenRuns = new Set();
  const panels = [...titles.values()].map((panel) => panelCard(panel, runs, hiddenRuns));
  let charts = [];
  const whole = button("Show all epochs", () => charts.forEach(({ chart }) => zoom(chart, 0, 100)), { hidden: true });
  const help = make("p", { class: "help" });
  const entries = runs.map(({ label, group }, n) => ({
    key: `run ${n}`,
    name: label,
    colour: `var(--series-${group % 8})`,
    dash: "solid",
  }));
  const runLegend =
    runs.length > 1 ? legend(entries, hiddenRuns, () => charts.forEach(({ redraw }) => redraw()), help) : null;
  body.append(make("div", { class: "row toolbar" }, runLegend, whole));
  body.append(
    make(
      "div",
      { class: "columns curves" },
      panels.map(({ card }) => card),
    ),
  );
  charts = panels.flatMap(({ start }) => start?.() ?? []);
  charts[0]?.chart.on("datazoom", () => {
    const { start, end } = charts[0].chart.getOption().dataZoom[0];
    whole.hidden = start < 0.1 && end > 99.9;
  });
  echarts.connect("curves");
}

function curves(content) {
  if (!content.runs.some((run) => run.panels?.length)) return null;
  const several = content.runs.length > 1;
  const colours =
    content.groups.length < content.runs.length ? " Runs that differ in their seed alone share a colour." : "";
  const more = several
    ? `${colours} Of several quantities in one chart the first is shown; press the names of others to see them.`
    : "";
  return {
    id: "curves",
    title: "Training",
    words:
      "How training went, epoch by epoch. Drag across a chart to zoom into some epochs, in all charts at once; a double " +
      `click shows all again. Ctrl and the wheel zoom too, and with the keyboard + and −.${more}`,
    build: (body) => build(body, content),
  };
}

Object.assign(page, { curves });
