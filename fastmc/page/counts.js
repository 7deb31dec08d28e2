// How many clips a store has of what; a bar that is pressed shows its clips in the gallery.

const page = window.fastmcPage;
const { make, segments, number, plural } = page;

const NOTABLE = 1.1; // times as many of one as of another

function counts(store, gallery) {
  const columns = Object.entries(store.by).filter(([, entries]) => entries.some(([, value]) => value >= 0));
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
        body.append(
          make(
            "div",
            { class: "row" },
            make("span", { class: "hint" }, "parts of"),
            segments("Protocol", names, 0, (n) => {
              of = n;
              redraws.forEach((redraw) => redraw());
            }),
          ),
        );
      }
      const grid = body.appendChild(make("div", { class: "counts" }));
      for (const [name, entries] of columns) {
        const host = make("div", { class: "chart" });
        const card = make(
          "div",
          { class: "card" },
          make("h3", {}, `By ${name}`),
          make("p", { class: "hint" }, balance(entries)),
          make("div", { class: "scroll bounded" }, host),
        );
        grid.append(card);
        redraws.push(countChart(host, name, entries, store, () => of, gallery));
      }
    },
  };
}

function protocolTable({ protocols }) {
  const head = ["protocol", "training clips", "test clips"];
  const rows = protocols.map(({ name, train, test }) => [name, number(train), number(test)]);
  return make("div", { class: "protocols" }, page.table({ head, rows, label: "Protocols", figures: true }));
}

function balance(entries) {
  const known = entries.filter(([, value]) => value >= 0);
  if (known.length < 2) return `${plural(known.length, "value")}`;
  const [most, fewest] = [known.reduce((a, b) => (b[2] > a[2] ? b : a)), known.reduce((a, b) => (b[2] < a[2] ? b : a))];
  if (most[2] === fewest[2]) return `Balanced: ${plural(most[2], "clip")} each.`;
  const ratio = most[2] / fewest[2];
  const times = ratio >= NOTABLE && Number.isFinite(ratio) ? `, ${number(ratio, 2)} times as many` : "";
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
      type: "bar",
      name: words,
      stack: "clips",
      data,
      barMaxWidth: 14,
      itemStyle: { color: colour },
      ...more,
    });
    const total = {
      show: true,
      position: "right",
      color: soft,
      formatter: ({ dataIndex: n }) => number(entries[n][2]),
    };
    return {
      grid: page.room({ right: 56, top: 32 }),
      legend: {
        top: 0,
        right: 0,
        itemWidth: 12,
        itemHeight: 12,
        textStyle: { color: soft },
        selectedMode: false,
        formatter: page.plain,
      },
      xAxis: page.valueAxis("", { minInterval: 1, splitNumber: 4 }),
      yAxis: page.categoryAxis(
        entries.map((entry) => entry[0]),
        { inverse: true, axisLabel: { interval: 0 } },
      ),
      tooltip: page.tooltip(({ dataIndex: n }) => [
        entries[n][0],
        `${plural(entries[n][2], "clip")}`,
        ...(part ? [`${part.name}: ${number(entries[n][2] - tests[n])} train, ${number(tests[n])} test`] : []),
      ]),
      series: [
        bar(
          "training",
          entries.map((entry, n) => entry[2] - tests[n]),
          series[0],
        ),
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
    words:
      `At ${number(fps)} frames a second. Views are of one length, whatever that of a clip: long ones are seen quickly, ` +
      "short ones slowly. Click a bar to see its clips.",
    build: (body) => {
      const grid = body.appendChild(make("div", { class: "columns" }));
      const host = (title) => {
        const element = make("div", { class: "chart" });
        grid.append(make("div", { class: "card" }, make("h3", {}, title), element));
        return element;
      };
      const same = (words) => body.append(make("p", { class: "hint" }, `All clips have ${words}.`));
      if (clips.length > 1) lengthChart(host("Frames a clip"), edges, clips, gallery);
      else same(plural(edges[0], "frame"));
      if (bodies.length > 1) bodyChart(host("Bodies a clip"), bodies, gallery);
      else same(plural(bodies[0][0], "body", "bodies"));
    },
  };
}

function lengthChart(host, edges, counts, gallery) {
  const label = `Histogram of lengths, ${number(edges[0])} to ${number(edges.at(-1) - 1)} frames`;
  const { chart } = page.histogram(host, "lengths", { edges, counts, across: "frames", label });
  chart.on("click", ({ dataIndex: n }) => gallery.only((wanted) => (wanted.length = [edges[n], edges[n + 1]])));
}

function bodyChart(host, bodies, gallery) {
  const [names, counts] = [bodies.map(([n]) => plural(n, "body", "bodies")), bodies.map(([, clips]) => clips)];
  const { chart } = page.bars(host, "bodies", { names, counts, across: "clips", label: "Bars: clips by bodies" });
  chart.on("click", ({ dataIndex: n }) => gallery.only((wanted) => (wanted.bodies = bodies[n][0])));
}

Object.assign(page, { counts, lengths });
