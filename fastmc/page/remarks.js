// What looks wrong in a store, and what its preparation left out.

const page = window.fastmcPage;
const { make, number, plural } = page;

function findings({ sanity, warnings, remarks }) {
  const all = [
    ...sanity.map((text) => ["wrong", "The clips do not look like bodies", text]),
    ...warnings.map((text) => ["wrong", "Warning", text]),
    ...remarks.map((text) => ["note", "Note", text]),
  ];
  const wrong = all.filter(([kind]) => kind === "wrong").length;
  return {
    id: "findings",
    title: wrong ? "What looks wrong" : "Nothing looks wrong",
    words: wrong
      ? "Mend this before you train: what is trained on is what is played below."
      : "Units, joints, sides and labels were looked at: bodies look like bodies. Let your own eye judge the clips.",
    build: (body) => {
      const list = make("ul", { class: "findings" });
      for (const [kind, title, text] of all) {
        list.append(make("li", { class: `card ${kind}` }, make("strong", {}, title), make("p", {}, text)));
      }
      if (all.length) body.append(list);
    },
  };
}

function skipped({ skipped: groups }) {
  const all = groups.reduce((sum, { count }) => sum + count, 0);
  return {
    id: "skipped",
    title: all ? `Left out: ${plural(all, "file")}` : "Nothing was left out",
    words: all
      ? "What the preparation did not take, and why; open a reason for the files."
      : "The preparation took every file that it found.",
    build: (body) => groups.forEach((group) => body.append(skippedGroup(group))),
  };
}

function skippedGroup({ reason, count, entries }) {
  const rows = entries.map(({ name, detail }) => [name, detail]);
  const table = page.table({ head: ["file", "what is wrong"], rows, label: reason });
  table.classList.add("bounded");
  const more =
    count > entries.length ? make("p", { class: "hint" }, `and ${number(count - entries.length)} more`) : null;
  return make(
    "details",
    { class: "card" },
    make("summary", {}, `${number(count)} × ${reason}`),
    table,
    more,
  );
}

Object.assign(page, { findings, skipped });
