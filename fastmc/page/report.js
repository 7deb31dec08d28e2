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

const COUNTS = "no one two three four five six seven eight nine ten eleven twelve".split(" ");
const MOST_NAMED = 4; // groups

function lead(content) {
  const { accuracies, runs } = content;
  if (runs.length > 1) return `${kinds(content)}${recognised(content)}.`;
  const [run] = runs;
  const row = firstRow(accuracies, runs);
  if (row < 0) return null;
  const untrained = run.untrained?.[row];
  const before = page.isThere(untrained) ? `before training it was ${page.percent(untrained)}` : "";
  const beside = [before, ofRaw(content, row)].filter(Boolean).join(", and ");
  const trained = `${page.percent(run.trained[row])}${testClips(content)} (${accuracies.rows[row]})`;
  return `Trained without labels, the encoder recognises ${trained}${beside && `; ${beside}`}.`;
}

// What raw coordinates give: once where all groups share it, else for each group where all are known.
function ofRaw({ groups, runs }, row) {
  const found = groups.map((group) => group.runs.map((n) => runs[n].raw?.[row]).find(page.isThere));
  const known = found.filter(page.isThere).map((share) => page.percent(share));
  const isShared = new Set(known).size === 1;
  if (!isShared && (!known.length || known.length < groups.length)) return "";
  return `raw coordinates give ${page.listed(isShared ? known.slice(0, 1) : known)}`;
}

// The first kind of accuracy that all runs have; -1 where there is none.
const firstRow = (accuracies, runs) =>
  accuracies?.rows.findIndex((_, n) => runs.every((run) => page.isThere(run.trained?.[n]))) ?? -1;

function testClips({ runs, classes }) {
  const tests = runs.find((run) => run.predictions)?.predictions.true.length;
  return tests ? ` of ${page.plural(tests, "test clip")} in ${classes.length} classes` : "";
}

// "b1 and a2mc, three seeds each"
function kinds({ groups, runs }) {
  const seeds = (n) => `${COUNTS[n] ?? page.number(n)} ${n === 1 ? "seed" : "seeds"}`;
  const sizes = groups.map((group) => group.runs.length);
  const labels = groups.map(({ label }) => label);
  if (groups.length > MOST_NAMED) return `${runs.length} runs of ${groups.length} kinds`;
  if (sizes.some((size) => size !== sizes[0]))
    return page.listed(labels.map((label, n) => `${label} (${seeds(sizes[n])})`));
  const each = groups.length > 1 ? " each" : "";
  return sizes[0] > 1 ? `${page.listed(labels)}, ${seeds(sizes[0])}${each}` : page.listed(labels);
}

function recognised(content) {
  const { accuracies, groups, runs } = content;
  const row = firstRow(accuracies, runs);
  if (row < 0 || groups.length > MOST_NAMED) return ", beside one another";
  const means = groups.map((group) => page.spread(group.runs.map((n) => runs[n].trained[row])).mean);
  const shares = page.listed(means.map((mean) => page.percent(mean)));
  const raw = ofRaw(content, row);
  return `: ${shares}${testClips(content)} are recognised (${accuracies.rows[row]})${raw && `; ${raw}`}`;
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
