// Starts the page: reads its content, unpacks its clips, puts up what a kind of page (report.js, store.js) consists of.
//
//   fastmcPage.kinds.NAME = (content, clips) => ({lead, facts, first, sections})
//     lead       one sentence under the title; facts: [[name, value], ...] beneath it
//     first      clips that play under the title, so that one sees at once what all of it is about
//     sections   [{id, title, words, build(body)}, ...] in order, null where there is none. words: a sentence or two
//                that say what is to be seen and done; build fills the element body, which is in the page by then
//   fastmcPage.ready                   a promise, kept when all of it stands

const page = window.fastmcPage;
const { make, button } = page;

const NEXT = 40; // pixels of the link before the current one that stay in sight
const REMEMBERED = "fastmc-theme";

function remembered() {
  try {
    return localStorage.getItem(REMEMBERED);
  } catch {
    return null; // a browser may keep nothing for a page from disk
  }
}

function remember(theme) {
  try {
    localStorage.setItem(REMEMBERED, theme);
  } catch {
    // then the switch holds until the page is closed
  }
}

function themeSwitch() {
  const words = () => (page.theme() === "dark" ? "Light" : "Dark");
  const press = () => {
    const other = page.theme() === "dark" ? "light" : "dark";
    remember(other);
    page.setTheme(other);
  };
  const element = button(words(), press, { class: "quiet theme", "aria-label": "Change between light and dark" });
  page.onTheme(() => page.fill(element, words()));
  return element;
}

function navigation(title, sections) {
  const links = sections.map(({ id, title: words }) => make("a", { href: `#${id}`, "data-to": id }, words));
  const row = make("div", { class: "links" }, links);
  const inView = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const link = links.find((each) => each.dataset.to === target.id);
        if (isIntersecting) {
          links.forEach((each) => each.removeAttribute("aria-current"));
          link.setAttribute("aria-current", "true");
          row.scrollTo({ left: link.offsetLeft - row.offsetLeft - NEXT });
        }
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  const bar = make(
    "nav",
    { class: "bar", "aria-label": "Sections" },
    row,
    themeSwitch(),
  );
  return { bar, watch: (section) => inView.observe(section) };
}

function header(content, clips, { lead, facts, first }) {
  const list = (facts ?? []).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const notes = (content.notes ?? []).map((note) => make("li", {}, note));
  return make(
    "header",
    { class: "head", "data-section": "header" },
    make("h1", {}, content.title),
    lead ? make("p", { class: "lead" }, lead) : null,
    first?.length ? strip(clips, first) : null,
    list.length ? make("dl", { class: "facts" }, list) : null,
    notes.length ? make("ul", { class: "notes", "aria-label": "Notes" }, notes) : null,
  );
}

function strip(clips, indices) {
  const camera = new page.Camera(clips.skeleton);
  const cards = indices.map((i) => page.clipCard(clips, camera, i, { lines: [], still: page.calm }).element);
  return make("div", { class: "strip", "aria-label": "Some of the clips" }, cards);
}

function frame({ id, title, words }) {
  const body = make("div", { class: "body" });
  const said = words ? make("p", { class: "words" }, words) : null;
  return { section: make("section", { id, "data-section": id }, make("h2", {}, title), said, body), body };
}

async function start() {
  const stored = remembered();
  if (["light", "dark"].includes(stored)) page.setTheme(stored);
  const content = JSON.parse(document.getElementById("content").textContent);
  const motions = content.motion ? await page.unpack(content.motion, content.skeleton.joints.length) : [];
  const clips = content.clips ? new page.Clips(content, motions) : null;
  const shown = page.kinds[content.kind](content, clips);
  const sections = shown.sections.filter(Boolean);
  const { bar, watch } = navigation(content.title, sections);
  const main = document.getElementById("page");
  const foot = make("footer", {}, [content.made, content.by].filter(Boolean).join(" · "));
  main.before(bar);
  main.append(header(content, clips, shown));
  main.after(foot);
  for (const part of sections) {
    const { section, body } = frame(part);
    main.append(section);
    await part.build(body);
    watch(section);
  }
  return page;
}

page.ready = start();
page.ready.catch((error) => {
  console.error(error);
  const sorry = `This page could not be drawn: ${error.message}. It needs a browser of 2024 or later.`;
  document.getElementById("page").append(make("p", { class: "sorry", role: "alert" }, sorry));
});
