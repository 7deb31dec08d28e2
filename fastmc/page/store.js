// The page of a packed store: what it holds, what looks wrong, and what training will see of it.

const page = window.fastmcPage;
const { plural } = page;

const AT_FIRST = 6; // clips that play under the title

page.kinds.store = (content, clips) => {
  const gallery = new page.Gallery(content, clips);
  const { store } = content;
  return {
    lead: lead(content),
    facts: store.facts,
    first: page
      .mixed(
        Array.from({ length: clips.length }, (_, i) => i),
        clips,
      )
      .slice(0, AT_FIRST),
    sections: [
      page.findings(store),
      gallery.section(),
      page.counts(store, gallery),
      page.lengths(store, gallery),
      page.skipped(store),
      page.views(content, clips),
    ],
  };
};

function lead({ store, classes }) {
  const clips = store.bodies.reduce((sum, [, count]) => sum + count, 0);
  const named = classes.length ? ` of ${plural(classes.length, "class", "classes")}` : " without labels";
  return `A packed store of ${plural(clips, "clip")}${named}, as training will see it, before any training.`;
}
