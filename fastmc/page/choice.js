// Which of the clips on maps are shown, how they are coloured, which one is pointed at and which one chosen.
//
//   new Choice(content, clips)   of all maps of a page
//     colourings, colouring      [{name, of(i, run), say(value)}, ...]: all, and the one in use; colourBy(n, runs)
//     values, rank(value)        those of the colouring that occur, and where each stands among them
//     only, words                values that are shown, all where there are none; what is searched for
//     kept                       [[colouring, values], ...] that other colourings show alone: they hold until cleared
//     isNarrowed, showAll()      whether any values are shown alone; none any more
//     hovered, chosen            clips, or null
//     shows(i, run)              whether a clip is shown
//   predictedBy(run)             what the run's classifier took clips for: a Map of clips to classes

const page = window.fastmcPage;

// What a dot can be coloured by: for each, the value of a clip of a run, and the names of values.
function colourings(content, clips) {
  const byClass = { name: "class", of: (i) => clips.classOf(i), say: (value) => clips.nameOfClass(value) };
  const fields = (content.fields ?? []).map((field) => ({
    name: field,
    of: (i) => clips.columns[field]?.[i] ?? -1,
    say: (value) => (value === -1 ? `${field} unknown` : `${field} ${value}`),
  }));
  const rightness = content.runs.some((run) => run.predictions)
    ? [
        {
          name: "right or wrong",
          of: (i, run) => rightOf(run, i, clips),
          say: (value) => ["right", "wrong", "not predicted"][value],
        },
      ]
    : [];
  return [byClass, ...rightness, ...fields];
}

// What a run's classifier took each clip for: {index of a clip: class}.
function predictedBy(run) {
  if (!run.taken) {
    const { clip = [], predicted = [] } = run.predictions ?? {};
    run.taken = new Map(clip.map((i, n) => [i, predicted[n]]));
    run.taken.delete(-1);
  }
  return run.taken;
}

function rightOf(run, i, clips) {
  const taken = predictedBy(run).get(i);
  return taken === undefined ? 2 : Number(taken !== clips.classOf(i));
}

// What the maps of the page have in common: which colouring, which clips are shown, pointed at, chosen.
class Choice {
  constructor(content, clips) {
    this.clips = clips;
    this.colourings = colourings(content, clips);
    this.colouring = this.colourings[0];
    this.filters = new Map(this.colourings.map((each) => [each, new Set()]));
    this.words = "";
    this.hovered = null;
    this.chosen = null;
  }

  get only() {
    return this.filters.get(this.colouring);
  }

  get kept() {
    return [...this.filters].filter(([each, only]) => each !== this.colouring && only.size);
  }

  get isNarrowed() {
    return [...this.filters.values()].some((only) => only.size);
  }

  showAll() {
    this.filters.forEach((only) => only.clear());
  }

  // Colour by the n-th; gives how many clips have each value, on average over runs.
  colourBy(n, runs) {
    this.colouring = this.colourings[n];
    const counts = new Map();
    for (const run of runs) {
      for (const i of run.map.clip) {
        const value = this.colouring.of(i, run);
        counts.set(value, (counts.get(value) ?? 0) + 1 / runs.length);
      }
    }
    this.values = [...counts.keys()].sort((a, b) => a - b);
    const ranks = new Map(this.values.map((value, rank) => [value, rank]));
    this.rank = (value) => ranks.get(value) ?? 0;
    return counts;
  }

  shows(i, run) {
    const { filters, words, clips } = this;
    for (const [colouring, only] of filters) if (only.size && !only.has(colouring.of(i, run))) return false;
    return !words || `${clips.className(i)} ${clips.name(i)}`.toLowerCase().includes(words);
  }
}

Object.assign(page, { Choice, predictedBy });
