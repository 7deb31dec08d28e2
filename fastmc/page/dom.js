// What all scripts of the page share: elements, numbers as text, the theme. Each script is a module of its own, and
// what it gives to the others is a property of window.fastmcPage.
//
//   make(tag, attributes, ...children)   an element; children are elements, text, or null. Text is text: names come
//                                        from strangers, and nothing here makes markup of one. `on: {click: f}` listens
//   fill(element, ...children)           the element with these children in the place of its own
//   button(text, press, attributes)      a button
//   choice(label, names, chosen, choose) a drop-down list; choose(number)
//   segments(label, names, chosen, choose)  a row of buttons of which one is pressed; choose(number)
//   onKeys(element, press)               press(key) is called for keys of the element, those with Ctrl, Alt or Meta are the
//                                        browser's; it gives false for a key that it has no use for
//   table({head, rows, label, figures})  a table, of which the first column stays in sight where it is wider than its
//                                        room; figures stand at the right of their cells
//   listed(words)                        "a, b and c"
//   runPicker(runs, choose)              a row of buttons to choose one of several runs; null of one run
//   number(x), percent(x), seconds(x), plural(n, "clip"), plural(n, "class", "classes")   as text; a
//                                        dash for what is not there
//   onTheme(f), theme(), setTheme("light" | "dark")        f is called at every change of the theme, until what onTheme
//                                        gave is called
//   colours()                            those of page.css in this theme: {ink, soft, faint, line, ground, card, accent,
//                                        left, right, middle, floor, good, bad, series: [8 that the colour-blind can
//                                        tell apart], scale: [from none to much]}
//   calm, touch                          whether the reader has asked for less motion; has a finger and no mouse, which
//                                        drags the page and not what is in it

const page = (window.fastmcPage = { charts: {}, kinds: {} });

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  return fill(element, ...children);
}

function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(isThere));
  return element;
}

function button(text, press, attributes = {}) {
  return make("button", { type: "button", ...attributes, on: { click: press } }, text);
}

function choice(label, names, chosen, choose) {
  const options = names.map((name, n) => make("option", { value: n, selected: n === chosen }, name));
  const select = make("select", { on: { change: () => choose(Number(select.value)) } }, options);
  return make("label", { class: "choice" }, make("span", {}, label), select);
}

function segments(label, names, chosen, choose) {
  const press = (n) => {
    buttons.forEach((each, k) => each.setAttribute("aria-pressed", k === n));
    choose(n);
  };
  const buttons = names.map((name, n) => button(name, () => press(n), { "aria-pressed": String(n === chosen) }));
  return make("div", { class: "segments", role: "group", "aria-label": label }, buttons);
}

function onKeys(element, press) {
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || press(event.key) === false) return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function runPicker(runs, choose) {
  const labels = runs.map(({ label }) => label);
  return runs.length > 1 ? make("div", { class: "row toolbar" }, segments("Run", labels, 0, choose)) : null;
}

function table({ head = null, rows, label, figures = false }) {
  const cell = (tag, text, n, scope) => make(tag, { scope, class: figures && n ? "figure" : null }, text);
  const lines = rows.map((row) =>
    make(
      "tr",
      {},
      row.map((text, n) => cell(n ? "td" : "th", text, n, n ? null : "row")),
    ),
  );
  const top = head?.map((text, n) => cell("th", text, n, "col"));
  return make(
    "div",
    { class: "scroll table", role: "region", "aria-label": label, tabindex: 0 },
    make("table", {}, top ? make("thead", {}, make("tr", {}, top)) : null, make("tbody", {}, lines)),
  );
}

const listed = (words) => [words.slice(0, -1).join(", "), ...words.slice(-1)].filter(Boolean).join(" and ");

const DASH = "–";
const isThere = (x) => x !== null && x !== undefined && !Number.isNaN(x);

function number(x, digits = 3) {
  if (!isThere(x)) return DASH;
  if (Number.isInteger(x)) return x.toLocaleString("en");
  return x.toLocaleString("en", { maximumSignificantDigits: digits });
}

const percent = (x, digits = 1) => (isThere(x) ? `${x.toFixed(digits)} %` : DASH);
const seconds = (x) => (isThere(x) ? `${x.toFixed(1)} s` : DASH);
const plural = (n, word, words = `${word}s`) => `${number(n)} ${n === 1 ? word : words}`;

const listeners = new Set();
const onTheme = (listen) => {
  listeners.add(listen);
  return () => listeners.delete(listen);
};
const tellTheme = () => {
  known = null;
  listeners.forEach((listen) => listen());
};
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light");

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  tellTheme();
}

systemDark.addEventListener("change", tellTheme);

const NAMED = "ink soft faint line ground card accent left right middle floor good bad".split(" ");
let known = null;

// A canvas knows no variables of the style, and a variable's value may depend on the theme: an element is asked.
function colours() {
  if (known) return known;
  const probe = document.body.appendChild(make("span", { hidden: true }));
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  known = Object.fromEntries(NAMED.map((name) => [name, resolve(name)]));
  known.series = Array.from({ length: 8 }, (_, n) => resolve(`series-${n}`));
  known.scale = Array.from({ length: 5 }, (_, n) => resolve(`scale-${n}`));
  probe.remove();
  return known;
}

const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const touch = matchMedia("(pointer: coarse)").matches;

Object.assign(page, {
  make,
  fill,
  button,
  choice,
  segments,
  onKeys,
  runPicker,
  table,
  listed,
  number,
  percent,
  seconds,
  plural,
  isThere,
  onTheme,
  theme,
});
Object.assign(page, { setTheme, colours, calm, touch });
