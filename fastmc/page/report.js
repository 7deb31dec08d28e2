// The page of runs: what was learnt, drawn and played.

const page = window.fastmcPage;

const MOST_AT_FIRST = 6;

// One clip of each of some classes, evenly among all classes that have clips.
function first(content, clips) {
  const ofClass = new Map();
  const indices = content.runs.find((run) => run.map)?.map.clip ?? [];
  for (const i of indices) if (!ofClass.has(clips.classOf(i))) ofClass.set(clips.classOf(i), i);
  const all = [...ofClass.entries()].sort((a, b) => a[0] - b[0]).map(([, i]) => i);
  const every = Math.max(all.length / MOST_AT_FIRST, 1);
  return all.filter((_, n) => Math.floor(n / every) !== Math.floor((n - 1) / every));
}

function lead(content) {
  const { accuracies, runs, classes } = content;
  const tests = runs.find((run) => run.predictions)?.predictions.true.length;
  const where = tests ? ` of ${page.plural(tests, "test clip")} in ${classes.length} classes` : "";
  if (runs.length > 1) return leadOfSeveral(content);
  const [run] = runs;
  const row = accuracies?.rows.findIndex((_, n) => page.isThere(run.trained?.[n])) ?? -1;
  if (row < 0) return null;
  const before = page.isThere(run.untrained?.[row])
    ? `; before training it was ${page.percent(run.untrained[row])}`
    : "";
  const trained = `${page.percent(run.trained[row])}${where} (${accuracies.rows[row]})`;
  return `Trained without labels, the encoder recognises ${trained}${before}.`;
}

const COUNTS = "no one two three four five six seven eight nine ten eleven twelve".split(" ");
const MOST_NAMED = 4; // groups

// "b1 and a2mc, three seeds each."
function leadOfSeveral({ groups, runs }) {
  const seeds = (n) => `${COUNTS[n] ?? page.number(n)} ${n === 1 ? "seed" : "seeds"}`;
  const sizes = groups.map((group) => group.runs.length);
  const labels = groups.map(({ label }) => label);
  if (groups.length > MOST_NAMED) return `${runs.length} runs of ${groups.length} kinds, beside one another.`;
  if (sizes.every((size) => size === 1)) return `${page.listed(labels)}, beside one another.`;
  if (sizes.every((size) => size === sizes[0]))
    return `${page.listed(labels)}, ${seeds(sizes[0])}${groups.length > 1 ? " each" : ""}.`;
  return `${page.listed(labels.map((label, n) => `${label} (${seeds(sizes[n])})`))}, beside one another.`;
}

// Facts that all runs share are said once, at the top.
function facts({ runs }) {
  const [one, ...others] = runs.map((run) => run.facts ?? []);
  const has = (list, [name, value]) => list.some((fact) => fact[0] === name && fact[1] === value);
  return one.filter((fact) => others.every((list) => has(list, fact)));
}

page.kinds.report = (content, clips) => ({
  lead: lead(content),
  facts: facts(content),
  first: clips ? first(content, clips) : [],
  sections: [
    page.accuracies(content),
    page.map(content, clips),
    page.confusions(content, clips),
    page.curves(content),
    page.attack(content, clips),
    page.time(content),
    page.settings(content),
  ],
});
