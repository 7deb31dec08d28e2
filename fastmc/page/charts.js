// What all charts of the page share. ECharts draws them; names in them stay text.
//
//   chart(host, name, option, label)   draws option() into the element host (which is in the page and has a height),
//                                      again at every change of theme or size; fastmcPage.charts[name] is the ECharts
//                                      object, label what those hear who do not see it. Returns {chart, redraw}
//   tooltip(words)                     a tooltip; words(params) gives its lines of text
//   plain(text)                        text that ECharts' rich text leaves as it is: {style|word} is its markup
//   valueAxis(name, more), categoryAxis(names, more)   axes; a category is its number, so that no name is data
//   room(more)                         the grid about a chart
//   seriesColour(n), seriesShape(n)    what the n-th of many looks like: 8 colours, then 8 shapes of them
//   swatch(n)                          the same as a small picture for a legend
//   line(n), FONT                      {colour, type} of the n-th line; what is written in
//   histogram(host, name, {edges, counts, across, label})  of whole numbers; an edge is the first of its bar
//   bars(host, name, {names, counts, across, label})       horizontal bars, the first on top

const page = window.fastmcPage;
const { make, number, plural, colours } = page;

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif';
const SHAPES = [
  "M0 -5A5 5 0 1 1 0 5A5 5 0 1 1 0 -5Z",
  "M0 -5.4L5.6 4.4L-5.6 4.4Z",
  "M-4.4 -4.4H4.4V4.4H-4.4Z",
  "M0 -6L5 0L0 6L-5 0Z",
  "M-1.8 -5.4H1.8V-1.8H5.4V1.8H1.8V5.4H-1.8V1.8H-5.4V-1.8H-1.8Z",
  "M0 5.4L-5.6 -4.4L5.6 -4.4Z",
  "M0 -6L1.7 -2H6L2.6 0.8L3.8 5.4L0 2.8L-3.8 5.4L-2.6 0.8L-6 -2H-1.7Z",
  "M-2.6 -5.2H2.6L5.2 0L2.6 5.2H-2.6L-5.2 0Z",
];
const DASHES = ["solid", [6, 3], [2, 3], [9, 3, 2, 3]];

const seriesColour = (n) => colours().series[n % 8];
const seriesShape = (n) => `path://${SHAPES[Math.floor(n / 8) % SHAPES.length]}`;
const line = (n) => ({ colour: seriesColour(n), type: DASHES[Math.floor(n / 8) % DASHES.length] });

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function swatch(n) {
  const path = svg("path", { d: SHAPES[Math.floor(n / 8) % SHAPES.length], style: `fill: var(--series-${n % 8})` });
  return svg("svg", { viewBox: "-7 -7 14 14", class: "swatch", "aria-hidden": "true" }, path);
}

// Rich text takes a brace and a word for the name of a style; a word joiner, which is not seen, keeps them apart.
const plain = (text) => String(text).replaceAll("{", "{\u2060");

function tooltip(words, more = {}) {
  const { card, line: border, ink } = colours();
  return {
    renderMode: "richText",
    confine: true,
    backgroundColor: card,
    borderColor: border,
    borderWidth: 1,
    textStyle: { color: ink, fontFamily: FONT, fontSize: 13 },
    formatter: (params) => words(params).map(plain).join("\n"),
    ...more,
  };
}

function axis(more) {
  const { soft, line: rule, faint } = colours();
  return {
    axisLine: { lineStyle: { color: rule } },
    axisTick: { show: false },
    axisLabel: { color: soft, fontSize: 12, hideOverlap: true },
    splitLine: { lineStyle: { color: rule } },
    nameTextStyle: { color: faint, fontSize: 12 },
    nameLocation: "middle",
    ...more,
  };
}

const valueAxis = (name, more = {}) => axis({ type: "value", name, nameGap: 30, ...more });

function categoryAxis(names, more = {}) {
  const { soft } = colours();
  return axis({
    type: "category",
    data: names.map((_, n) => n),
    splitLine: { show: false },
    ...more,
    axisLabel: {
      color: soft,
      fontSize: 12,
      formatter: (n) => shorten(names[n], more.longest ?? 28),
      ...more.axisLabel,
    },
  });
}

const shorten = (text, longest) => (text.length > longest ? `${text.slice(0, longest - 1)}…` : text);

const room = (more = {}) => ({ left: 8, right: 16, top: 16, bottom: 8, containLabel: true, ...more });

function chart(host, name, option, label) {
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", label);
  const drawn = echarts.init(host, null, { renderer: "canvas" });
  const redraw = () =>
    drawn.setOption({ animation: false, textStyle: { fontFamily: FONT }, ...option() }, { notMerge: true });
  redraw();
  page.onTheme(redraw);
  const isOff = () => drawn.getWidth() !== host.clientWidth || drawn.getHeight() !== host.clientHeight;
  new ResizeObserver(() => isOff() && drawn.resize()).observe(host); // it is told the first size too
  page.charts[name] = drawn;
  return { chart: drawn, redraw };
}

function histogram(host, name, { edges, counts, across, label }) {
  const [from, to] = [(n) => number(edges[n]), (n) => number(edges[n + 1] - 1)];
  const spans = counts.map((_, n) => (from(n) === to(n) ? from(n) : `${from(n)} – ${to(n)}`));
  const option = () => ({
    grid: room({ bottom: 24 }),
    xAxis: categoryAxis(
      edges.slice(0, -1).map((edge) => number(edge)),
      { name: across, nameGap: 30 },
    ),
    yAxis: valueAxis("", { minInterval: 1 }),
    tooltip: tooltip(({ dataIndex: n }) => [`${spans[n]} ${across}`, plural(counts[n], "clip")]),
    series: [{ type: "bar", data: counts, barCategoryGap: "6%", itemStyle: { color: colours().accent } }],
  });
  return chart(host, name, option, label);
}

function bars(host, name, { names, counts, across, label }) {
  host.style.height = `${Math.max(names.length * 24 + 48, 96)}px`;
  const option = () => ({
    grid: room({ right: 56 }),
    xAxis: valueAxis("", { minInterval: 1, splitNumber: 4 }),
    yAxis: categoryAxis(names, { inverse: true, axisLabel: { interval: 0 } }),
    tooltip: tooltip(({ dataIndex: n }) => [names[n], `${number(counts[n])} ${across}`]),
    series: [
      {
        type: "bar",
        data: counts,
        barMaxWidth: 14,
        itemStyle: { color: colours().accent, borderRadius: [0, 3, 3, 0] },
        label: { show: true, position: "right", color: colours().soft, formatter: ({ value }) => number(value) },
      },
    ],
  });
  return chart(host, name, option, label);
}

Object.assign(page, { chart, tooltip, plain, valueAxis, categoryAxis, room, histogram, bars, swatch, line });
Object.assign(page, { FONT, seriesColour, seriesShape, shorten });
