// The page of runs: what was learnt, drawn and played.

const page = window.fastmcPage;
const { make } = page;

page.kinds.report = (content, clips) => ({
  lead: null,
  facts: content.runs[0].facts,
  sections: [
    {
      id: "clips",
      title: "Clips",
      words: "Some.",
      build: (body) => {
        const camera = new page.Camera(clips.skeleton);
        for (const i of [0, 1, 2]) {
          const player = new page.Player(clips.skeleton, { camera });
          body.append(make("div", { class: "card" }, player.element));
          player.show(clips.motion(i), { seconds: clips.seconds(i), index: i, label: clips.describe(i) });
        }
      },
    },
  ],
});
