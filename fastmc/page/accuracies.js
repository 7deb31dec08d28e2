// How good the features are: each run beside an untrained encoder, raw coordinates, and what was published.

const page = window.fastmcPage;
const { make, percent, isThere, colours } = page;

const MOST_BESIDE = 3; // columns of a table that stands beside the bars
const FIGURE = 30; // pixels across
const OF_UNTRAINED = new Set(["encoder", "data"]); // facts that two untrained encoders of one kind share

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function spread(values) {
  const there = values.filter(isThere);
  if (!there.length) return null;
  const middle = mean(there);
  const deviation =
    there.length > 1 ? Math.sqrt(mean(there.map((x) => (x - middle) ** 2)) * (there.length / (there.length - 1))) : 0;
  return { mean: middle, deviation, values: there };
}

// What is compared, each with the spread of every row: groups of runs that differ in their seed alone first.
function contenders(content) {
  const { groups } = content;
  const trained = groups.map(({ label, runs }, n) => ({
    name: groups.length > 1 ? label : "trained",
    seeds: runs.length,
    of: rowsOf(content, runs, "trained"),
    own: n,
  }));
  const same = (what) => (run) => JSON.stringify(run[what]);
  const kind = ({ facts }) => JSON.stringify(facts.filter(([name]) => OF_UNTRAINED.has(name)));
  return [
    ...trained,
    ...beside(content, "untrained", "untrained", kind),
    ...beside(content, "raw", "raw coordinates", same("raw")),
    ...beside(content, "published", "published", same("published")),
  ].filter(isAnything);
}

const rowsOf = ({ accuracies: { rows }, runs }, which, what) =>
  rows.map((_, row) => spread(which.map((n) => runs[n][what]?.[row])));

// What trained runs are compared with: said once where all of them share it, else with the groups that do.
function beside(content, what, name, keyOf) {
  const { runs, groups } = content;
  const sharing = Map.groupBy(
    [...runs.keys()].filter((n) => runs[n][what]?.some(isThere)),
    (n) => keyOf(runs[n]),
  );
  return [...sharing.values()].map((which) => {
    const labels = groups.filter((group) => group.runs.some((n) => which.includes(n))).map(({ label }) => label);
    const isShared = sharing.size === 1 && (what !== "published" || which.length === runs.length);
    const whose = isShared ? "" : `, ${page.listed(labels)}`;
    return { what, name: `${name}${whose}`, seeds: 1, of: rowsOf(content, which, what) };
  });
}

const isAnything = ({ of }) => of.some(Boolean);

// Where the published figures are from, once or for each group.
function sourceOf({ runs, groups }) {
  const sources = groups.map((group) => [group.label, runs[group.runs[0]].published_source]);
  const said = sources.filter(([, text]) => text);
  const texts = [...new Set(said.map(([, text]) => text))];
  if (texts.length < 2) return texts.length ? `Published: ${texts[0]}.` : "";
  return `Published: ${said.map((each) => each.join(": ")).join("; ")}.`;
}

function lookOf(contender) {
  const { faint, line, ink } = colours();
  if (contender.own !== undefined) return { color: page.seriesColour(contender.own) };
  if (contender.what === "published")
    return { color: "transparent", borderColor: ink, borderWidth: 1.2, borderType: "dashed" };
  return contender.what === "untrained" ? { color: faint } : { color: line, borderColor: faint, borderWidth: 1 };
}

const said = ({ mean: middle, deviation, values }) =>
  values.some((value) => value !== values[0]) ? `${middle.toFixed(1)} ± ${deviation.toFixed(1)} %` : percent(middle);

// On a narrow page figures stand upright: there is no room for them side by side.
function barsOf(contender, upright) {
  const { ink, soft } = colours();
  const several = contender.seeds > 1;
  const bar = {
    name: contender.name,
    type: "bar",
    barMaxWidth: 44,
    barGap: "18%",
    data: contender.of.map((found) => found && { value: found.mean, label: { distance: above(found, several) } }),
    itemStyle: { ...lookOf(contender), borderRadius: [4, 4, 0, 0] },
    labelLayout: { hideOverlap: true },
    label: {
      show: true,
      position: "top",
      color: soft,
      fontSize: 11,
      formatter: ({ value }) => value.toFixed(1),
      ...(upright ? { rotate: 90, align: "left", verticalAlign: "middle" } : {}),
    },
  };
  if (several) bar.markPoint = seedMarks(contender, ink);
  return bar;
}

// Pixels from the top of a bar to its figure, which stands above the mark of the best seed: a percent has two of them.
const above = ({ mean: middle, values }, several) => 5 + (several ? 2 * (Math.max(...values) - middle) : 0);

// The seeds themselves, as small dashes on the bar of their mean.
function seedMarks(contender, ink) {
  const data = contender.of.flatMap((found, row) =>
    found ? found.values.map((value) => ({ coord: [row, value] })) : [],
  );
  return { symbol: "rect", symbolSize: [14, 2], itemStyle: { color: ink }, label: { show: false }, silent: true, data };
}

function table(rows, compared, source) {
  const seeds = compared.filter((each) => each.seeds > 1);
  const words = [
    seeds.length
      ? `± is the standard deviation over seeds (${seeds.map(({ name, seeds: n }) => `${n} of ${name}`).join(", ")}).`
      : "",
    source,
  ].join(" ");
  const head = ["", ...compared.map(({ name }) => name)];
  const lines = rows.map((row, n) => [row, ...compared.map(({ of }) => (of[n] ? said(of[n]) : percent(null)))]);
  return make(
    "div",
    {},
    page.table({ head, rows: lines, label: "Accuracies", figures: true }),
    make("p", { class: "hint" }, words),
  );
}

function build(body, content) {
  const { rows } = content.accuracies;
  const compared = contenders(content);
  const host = make("div", { class: "chart" });
  body.append(
    make(
      "div",
      { class: compared.length > MOST_BESIDE ? "stack" : "columns" },
      make("div", { class: "card" }, host),
      make("div", { class: "card" }, table(rows, compared, sourceOf(content))),
    ),
  );
  const upright = host.clientWidth < FIGURE * rows.length * (compared.length + 1);
  const option = () => ({
    grid: page.room({ top: upright ? 60 : 44 }),
    legend: {
      type: "scroll",
      top: 0,
      right: 0,
      left: 0,
      itemWidth: 12,
      itemHeight: 12,
      textStyle: { color: colours().soft },
      formatter: (name) => page.shorten(name, 40),
    },
    xAxis: page.categoryAxis(rows),
    yAxis: page.valueAxis("", { max: 100, axisLabel: { color: colours().soft, formatter: (value) => `${value} %` } }),
    tooltip: page.tooltip(({ seriesIndex, dataIndex }) => {
      const { name, of } = compared[seriesIndex];
      const found = of[dataIndex];
      return [
        `${rows[dataIndex]}, ${name}`,
        said(found),
        ...(found.values.length > 1 ? [`seeds: ${found.values.map((x) => x.toFixed(1)).join(", ")}`] : []),
      ];
    }),
    series: compared.map((each) => barsOf(each, upright)),
  });
  page.chart(host, "accuracies", option, "Bars of accuracies; the table beside has the same figures");
}

function accuracies(content) {
  if (!content.accuracies) return null;
  return {
    id: "accuracies",
    title: "Accuracy",
    words:
      "How well actions are recognised from the features alone, on clips that training has not seen. Training is worth " +
      "what it gains over an untrained encoder and over the raw coordinates of the joints.",
    build: (body) => build(body, content),
  };
}

Object.assign(page, { accuracies, spread });
