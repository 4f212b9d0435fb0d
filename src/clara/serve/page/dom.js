// Builds elements. Text is always text: nothing here or elsewhere parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, properties that begin with "on" as listeners, and children (nodes or texts). */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `el`, of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the page's icons. */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true", class: "icon" }, svg("use", { href: `#i-${name}` }));
}

export const byId = (id) => document.getElementById(id);

/** Tell those who do not see the page. */
export const say = (text) => (byId("said").textContent = text);

/** What is said instead of content: nothing there, an error, a wait. */
export function notice({ kind = "info", sign = "alert", title, text = "", actions = [] }) {
  return el(
    "div",
    { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null },
    icon(sign),
    el("div", {}, el("p", { class: "notice-title" }, sentence(title)), text && el("p", {}, sentence(text)), actions.length > 0 && el("div", { class: "row" }, actions)),
  );
}

/** Words of the server, which begin small and end without a stop, as a sentence. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…:]$/.test(text) ? "" : ".");

/** Grey lines in the place of what is not there yet. */
export function skeleton(lines = 2) {
  return el("div", { class: "skeleton", "aria-hidden": "true" }, Array.from({ length: lines }, () => el("span")));
}

const NUMBER = new Intl.NumberFormat("en");

export const count = (number) => NUMBER.format(number);

export const several = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Bytes in a unit that suits them, as the limits are given. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  let size = number;
  while (size >= 1024 && place < units.length - 1) {
    size /= 1024;
    place += 1;
  }
  return `${place && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[place]}`;
}

/** Two lengths beside each other: what a text takes, and what of it is read or kept. */
export function meter({ text, read, textLabel, readLabel, summary }) {
  const most = Math.max(text, read, 1);
  const bar = (kind, number, label) => {
    const inner = el("span", { class: "bar-in" });
    inner.style.inlineSize = `${Math.max((100 * number) / most, 0.6)}%`;
    return el("div", { class: `bar ${kind}` }, el("span", { class: "bar-label" }, label), el("span", { class: "bar-out", "aria-hidden": "true" }, inner), el("span", { class: "bar-number" }, count(number)));
  };
  return [bar("of-text", text, textLabel), bar("of-memory", read, readLabel), summary && el("p", { class: "meter-summary" }, summary)];
}

/** "4 times fewer" of two numbers of tokens; empty where there is nothing to say. */
export function fewer(text, read) {
  const ratio = text / Math.max(read, 1);
  return ratio >= 1.15 ? `${ratio >= 10 ? Math.round(ratio) : ratio.toFixed(1).replace(/\.0$/, "")} times fewer` : "";
}
