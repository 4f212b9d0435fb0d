// A document's text with a stretch highlighted and its pages marked. Offsets count code points, as the server's do.

import { el } from "./dom.js";

/** Elements of passages that follow each other; `range` is what is highlighted. */
export function passages(list, range, lastPage = null) {
  let page = lastPage;
  return list.map((passage) => {
    const breaks = passage.page === null ? [] : [...(passage.page === page ? [] : [passage.start]), ...passage.breaks];
    let number = passage.page === page ? passage.page : passage.page - 1;
    const node = el("div", { class: "passage" }, pieces(passage, range, breaks).map((piece) => [piece.opens && el("p", { class: "page-mark" }, `Page ${(number += 1)}`), piece.marked ? el("mark", {}, piece.text) : piece.text]));
    page = passage.page === null ? null : passage.page + passage.breaks.length;
    return node;
  });
}

/** Lines of a printed page that go on in the next one flow; as many characters as before, so that offsets hold. */
const flowing = (passage) => (passage.page === null ? passage.text : passage.text.replace(/([^\n]{60})\n(?=\S)/g, "$1 "));

function pieces(passage, range, breaks) {
  const points = Array.from(flowing(passage));
  const inside = (offset) => Math.min(Math.max(offset - passage.start, 0), points.length);
  const [from, to] = [inside(range.start), inside(range.end)];
  const openings = new Set(breaks.map(inside));
  const cuts = [...new Set([0, from, to, points.length, ...openings])].sort((one, other) => one - other);
  return cuts.slice(0, -1).map((cut, place) => ({
    text: points.slice(cut, cuts[place + 1]).join(""),
    marked: cut >= from && cut < to,
    opens: openings.has(cut),
  }));
}

/** A stretch with some of what stands around it, in one line. */
export function snippet(passage, range, around = 90) {
  const points = Array.from(passage.text);
  const from = Math.max(range.start - passage.start, 0);
  const to = Math.min(range.end - passage.start, points.length);
  // A whole passage is shown by how it begins.
  const whole = from === 0 && to === points.length;
  const last = whole ? Math.min(2 * around, to) : to;
  const first = edge(points, Math.max(from - around, 0), from, 1);
  const end = edge(points, Math.min(last + around, points.length), last, -1);
  const line = (a, b) => points.slice(a, b).join("").replace(/\s+/g, " ");
  const text = whole ? line(from, end) : [line(first, from).trimStart(), el("mark", {}, line(from, last)), line(last, end).trimEnd()];
  return el("span", { class: "snippet" }, first > 0 && "…\u00a0", text, end < points.length && "\u00a0…");
}

/** The nearest end of a word towards `limit`, so that no word is cut. */
function edge(points, at, limit, step) {
  if (at === 0 || at === points.length) return at;
  for (let place = at; place !== limit; place += step) if (/\s/.test(points[step > 0 ? place : place - 1])) return place;
  return at;
}
