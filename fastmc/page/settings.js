// How a step's time is spent; which settings differ, and all of them.

const page = window.fastmcPage;
const { make, fill, button, number, colours } = page;

function timeOf(body, run, n) {
  const { says, unit, parts } = run.time;
  const host = make("div", { class: "chart" });
  const sides = ["cpu", "gpu"].filter((side) => parts.some((part) => page.isThere(part[side])));
  host.style.height = `${parts.length * (sides.length > 1 ? 34 : 26) + 70}px`;
  body.append(make("div", { class: "card" }, host, says ? make("p", { class: "hint" }, says) : null));
  const names = parts.map(({ name, within }) => (within ? `within it: ${name}` : name));
  const option = () => ({
    grid: page.room({ right: 64, top: sides.length > 1 ? 34 : 8, bottom: 28 }),
    legend: sides.length > 1 ? { top: 0, left: 0, textStyle: { color: colours().soft } } : undefined,
    xAxis: page.valueAxis(unit, { splitNumber: 4 }),
    yAxis: page.categoryAxis(names, { inverse: true, longest: 44, axisLabel: { interval: 0 } }),
    tooltip: page.tooltip(({ dataIndex, seriesName, value }) => [
      parts[dataIndex].within ? `${parts[dataIndex].name}, within ${parts[dataIndex].within}` : parts[dataIndex].name,
      `${seriesName}: ${number(value)} ${unit}`,
    ]),
    series: sides.map((side, k) => ({
      name: side.toUpperCase(),
      type: "bar",
      barMaxWidth: 13,
      data: parts.map((part) => ({
        value: part[side],
        itemStyle: { color: page.seriesColour(k), opacity: part.within ? 0.55 : 1 },
      })),
      itemStyle: { color: page.seriesColour(k), borderRadius: [0, 3, 3, 0] },
      label: {
        show: true,
        position: "right",
        color: colours().soft,
        fontSize: 11,
        formatter: ({ value }) => number(value, 3),
      },
    })),
  });
  page.chart(host, `time ${n}`, option, `Parts of a step by ${unit}, as bars`);
}

function time(content) {
  const runs = content.runs.filter((run) => run.time?.parts.length);
  if (!runs.length) return null;
  return {
    id: "time",
    title: "Time of a step",
    words: "Where the time of one step of training goes, as the profile measured it. Paler bars lie within one above.",
    build: (body) =>
      runs.forEach((run, n) => {
        if (runs.length > 1) body.append(make("h3", { class: "of-run" }, run.label));
        timeOf(body, run, n);
      }),
  };
}

async function copy(text, press) {
  try {
    await navigator.clipboard.writeText(text);
    fill(press, "Copied");
  } catch {
    fill(press, "Select it above");
  }
  setTimeout(() => fill(press, "Copy"), 2000);
}

function settingsOf(run, several) {
  const { folder, facts = [], settings = [], command } = run;
  const search = make("input", {
    type: "search",
    placeholder: "Search settings",
    "aria-label": `Search the settings of ${run.label}`,
  });
  const rows = [["folder", folder], ...facts, ...settings].filter(([, value]) => page.isThere(value));
  const said = make("span", { class: "hint", role: "status" });
  const found = page.table({ rows, label: `Settings of ${run.label}` });
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    const lines = [...found.querySelectorAll("tbody tr")];
    lines.forEach((line) => (line.hidden = !line.textContent.toLowerCase().includes(wanted)));
    fill(said, lines.every((line) => line.hidden) ? "nothing matches" : null);
  });
  const again = command
    ? make(
        "div",
        { class: "command" },
        make("pre", {}, command),
        button("Copy", (event) => copy(command, event.currentTarget), { class: "quiet" }),
      )
    : null;
  const title = several ? `All settings of ${run.label}` : "All settings";
  return make(
    "details",
    { class: "card" },
    make("summary", {}, title),
    again,
    make("div", { class: "row toolbar" }, search, said),
    found,
  );
}

function settings(content) {
  const { runs, differences = [] } = content;
  const several = runs.length > 1;
  const words = several
    ? "What sets the runs apart, and all that each was told."
    : "All that the run was told, and the command that makes it again.";
  return {
    id: "settings",
    title: "Settings",
    words,
    build: (body) => {
      if (several && differences.length) {
        const head = ["", ...runs.map(({ label }) => label)];
        const rows = differences.map(({ setting, values }) => [setting, ...values.map((value) => value ?? "–")]);
        const compared = page.table({ head, rows, label: "Settings that differ" });
        body.append(make("div", { class: "card", "data-part": "differences" }, compared));
      } else if (several) body.append(make("p", { class: "empty" }, "The settings of these runs do not differ."));
      body.append(
        make(
          "div",
          { class: "all-settings" },
          runs.map((run) => settingsOf(run, several)),
        ),
      );
    },
  };
}

Object.assign(page, { time, settings });
