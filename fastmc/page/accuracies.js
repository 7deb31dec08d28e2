// How good the features are: each run beside an untrained encoder, raw coordinates, and what was published.

const page = window.fastmcPage;
const { make, percent, isThere, colours } = page;

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
  const { rows, raw, published } = content.accuracies;
  const groups = content.groups?.length ? content.groups : content.runs.map(({ label }, n) => ({ label, runs: [n] }));
  const of = (runs, what) => rows.map((_, row) => spread(runs.map((run) => content.runs[run][what]?.[row])));
  const all = content.runs.map((_, n) => n);
  const fixed = (values) => rows.map((_, row) => spread([values?.[row]]));
  return [
    ...groups.map(({ label, runs }, n) => ({
      name: groups.length > 1 ? label : "trained",
      seeds: runs.length,
      of: of(runs, "trained"),
      own: n,
    })),
    { name: "untrained", seeds: 1, of: of(all, "untrained") },
    { name: "raw coordinates", seeds: 1, of: fixed(raw) },
    { name: "published", seeds: 1, of: fixed(published) },
  ].filter(({ of: found }) => found.some(Boolean));
}

function lookOf(contender) {
  const { faint, line, ink } = colours();
  if (contender.own !== undefined) return { color: page.seriesColour(contender.own) };
  if (contender.name === "published")
    return { color: "transparent", borderColor: ink, borderWidth: 1.2, borderType: "dashed" };
  return contender.name === "untrained" ? { color: faint } : { color: line, borderColor: faint, borderWidth: 1 };
}

const said = ({ mean: middle, deviation, values }) =>
  values.some((value) => value !== values[0]) ? `${middle.toFixed(1)} ± ${deviation.toFixed(1)} %` : percent(middle);

function barsOf(contender) {
  const { ink, soft } = colours();
  const several = contender.seeds > 1;
  const bar = {
    name: contender.name,
    type: "bar",
    barMaxWidth: 44,
    barGap: "18%",
    data: contender.of.map((found) => (found ? found.mean : null)),
    itemStyle: { ...lookOf(contender), borderRadius: [4, 4, 0, 0] },
    labelLayout: { hideOverlap: true },
    label: {
      show: !several,
      position: "top",
      color: soft,
      fontSize: 11,
      formatter: ({ value }) => (isThere(value) ? value.toFixed(1) : ""),
    },
  };
  if (several) bar.markPoint = seedMarks(contender, ink);
  return bar;
}

// The seeds themselves, as small dashes on the bar of their mean.
function seedMarks(contender, ink) {
  const data = contender.of.flatMap((found, row) =>
    found ? found.values.map((value) => ({ coord: [row, value] })) : [],
  );
  return { symbol: "rect", symbolSize: [14, 2], itemStyle: { color: ink }, label: { show: false }, silent: true, data };
}

function table(rows, compared, source) {
  const head = make(
    "tr",
    {},
    make("th", {}, ""),
    compared.map(({ name }) => make("th", { class: "figure" }, name)),
  );
  const lines = rows.map((row, n) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, row),
      compared.map(({ of }) => make("td", { class: "figure" }, of[n] ? said(of[n]) : page.percent(null))),
    ),
  );
  const seeds = compared.filter((each) => each.seeds > 1);
  const words = [
    seeds.length
      ? `± is the standard deviation over seeds (${seeds.map(({ name, seeds: n }) => `${n} of ${name}`).join(", ")}).`
      : "",
    source ? `Published: ${source}.` : "",
  ].join(" ");
  return make(
    "div",
    {},
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, lines))),
    make("p", { class: "hint" }, words),
  );
}

function build(body, content) {
  const { rows, published_source: source } = content.accuracies;
  const compared = contenders(content);
  const host = make("div", { class: "chart" });
  body.append(
    make(
      "div",
      { class: "columns" },
      make("div", { class: "card" }, host),
      make("div", { class: "card" }, table(rows, compared, source)),
    ),
  );
  const option = () => ({
    grid: page.room({ top: 44 }),
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
    tooltip: page.tooltip(({ seriesName, dataIndex }) => {
      const found = compared.find(({ name }) => name === seriesName).of[dataIndex];
      return [
        `${rows[dataIndex]}, ${seriesName}`,
        said(found),
        ...(found.values.length > 1 ? [`seeds: ${found.values.map((x) => x.toFixed(1)).join(", ")}`] : []),
      ];
    }),
    series: compared.map(barsOf),
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
