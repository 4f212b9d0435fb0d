// A map of the store: each point a passage, near what its memory is like. A question is placed among them.

import { get, Refused, Unreachable, v1, withQuery } from "./api.js";
import { last } from "./ask.js";
import { byId, count, el, notice, several, skeleton, svg } from "./dom.js";
import * as reader from "./reader.js";
import { changes, state } from "./state.js";

const WIDTH = 1000;
const HEIGHT = 760;
const MARGIN = 56;
const LABELS = 14; // more documents than these are told apart by colour and by pointing alone
const COLOURS = 8;

let drawn = 0;
let current = null; // { told, points, at }

export function shown() {
  if (!byId("map-query").value && last.question) byId("map-query").value = last.question;
  draw();
}

export function begin() {
  byId("map-form").addEventListener("submit", (event) => {
    event.preventDefault();
    place(byId("map-query").value.trim());
  });
  changes.addEventListener("stores", () => !byId("view-map").hidden && draw());
}

async function draw() {
  const { store } = state;
  const mine = (drawn += 1);
  const body = byId("map-body");
  if (!store) return;
  byId("map-form").hidden = store.passages < 3;
  if (store.passages < 3) {
    byId("map-lead").textContent = "";
    body.replaceChildren(notice({ sign: "none", kind: "none", title: "There is no map yet.", text: "It takes three passages at least.", actions: store.write ? [el("a", { class: "button", href: "#documents" }, "Add documents")] : [] }));
    return;
  }
  if (!body.childElementCount || current?.store !== store.name) body.replaceChildren(el("div", { class: "plot" }, skeleton(6)));
  try {
    const told = await get(withQuery("map", { store: store.name }));
    if (mine !== drawn) return;
    current = { store: store.name, ...picture(told) };
    byId("map-lead").textContent = told.points.length < told.passages ? `${count(told.points.length)} of ${several(told.passages, "passage")}, near each other where their memories are alike.` : `${several(told.passages, "passage")}, near each other where their memories are alike.`;
    body.replaceChildren(current.plot, current.aside);
    if (byId("map-query").value.trim()) place(byId("map-query").value.trim());
  } catch (error) {
    if (mine === drawn) body.replaceChildren(problem(error));
  }
}

function problem(error) {
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
  return notice({ kind: "bad", title: error instanceof Unreachable ? "The server could not be reached." : error.message, actions: [el("button", { class: "button", type: "button", onclick: draw }, "Try again")] });
}

const across = (share) => MARGIN + share * (WIDTH - 2 * MARGIN);
const down = (share) => MARGIN + share * (HEIGHT - 2 * MARGIN);

function picture(told) {
  const names = Object.entries(told.documents);
  const most = new Map(names.map(([id]) => [id, 0]));
  for (const point of told.points) most.set(point.document, most.get(point.document) + 1);
  const ranked = names.sort(([one], [other]) => most.get(other) - most.get(one));
  const colour = new Map(ranked.map(([id], place) => [id, place < COLOURS ? place : "rest"]));
  const points = told.points.map((point, place) =>
    svg("circle", { id: `point-${place}`, role: "option", "aria-selected": "false", "aria-label": `${told.documents[point.document]}: ${point.text}`, class: `point c-${colour.get(point.document)}`, cx: across(point.x).toFixed(1), cy: down(point.y).toFixed(1), r: told.points.length > 400 ? 7 : 10, onclick: (event) => open(place, event.currentTarget), onpointerenter: () => tell(place) }),
  );
  const question = svg("g", { class: "question-mark", "aria-hidden": "true" });
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "presentation" }, points, labels(told, ranked), question);
  const board = el("div", { class: "board", role: "listbox", tabindex: "0", "aria-label": "Passages. Arrow keys go to the next one in that direction, Enter reads it.", onkeydown: keys, onfocus: () => tell(current.at) }, image);
  const told2 = el("p", { class: "told" }, "Point at a passage to see how it begins; click to read it.");
  const legend = el("ul", { class: "legend", "aria-label": "Documents" }, ranked.slice(0, COLOURS).map(([id, name], place) => el("li", { onpointerenter: () => only(id), onpointerleave: () => only(null) }, el("span", { class: `swatch c-${place}`, "aria-hidden": "true" }), name)), ranked.length > COLOURS && el("li", {}, el("span", { class: "swatch c-rest", "aria-hidden": "true" }), several(ranked.length - COLOURS, "more document")));
  const near = el("div", { class: "near", role: "status" });
  return { told, points, at: 0, question, caption: told2, near, plot: el("div", { class: "plot" }, board, told2), aside: el("aside", { class: "map-aside" }, near, el("h2", {}, "Documents"), legend) };
}

/** Names of the documents, each above the middle of its passages. */
function labels(told, ranked) {
  if (ranked.length > LABELS) return [];
  return ranked.map(([id, name]) => {
    const mine = told.points.filter((point) => point.document === id);
    const middle = (axis) => mine.reduce((sum, point) => sum + point[axis], 0) / mine.length;
    const short = name.length > 24 ? `${name.slice(0, 23)}…` : name;
    return svg("text", { class: "map-label", "aria-hidden": "true", x: Math.min(Math.max(across(middle("x")), 100), WIDTH - 100).toFixed(1), y: (down(middle("y")) - 18).toFixed(1) }, short);
  });
}

function only(id) {
  current.points.forEach((node, place) => node.classList.toggle("dim", id !== null && current.told.points[place].document !== id));
}

function tell(place) {
  const { points, told, caption, plot } = current;
  points[current.at].setAttribute("aria-selected", "false");
  current.at = place;
  points[place].setAttribute("aria-selected", "true");
  plot.firstChild.setAttribute("aria-activedescendant", `point-${place}`);
  const point = told.points[place];
  caption.replaceChildren(el("strong", {}, told.documents[point.document]), ` ${point.text}…`);
}

function open(place, from) {
  const point = current.told.points[place];
  tell(place);
  reader.open(v1(`documents/${point.document}#char=${point.start},${point.end}`).href, from);
}

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function keys(event) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    open(current.at, event.currentTarget);
    return;
  }
  const direction = DIRECTIONS[event.key];
  if (!direction) return;
  event.preventDefault();
  const from = current.told.points[current.at];
  let best = null;
  current.told.points.forEach((point, place) => {
    const [dx, dy] = [point.x - from.x, point.y - from.y];
    const ahead = dx * direction[0] + dy * direction[1];
    if (place === current.at || ahead <= 1e-6) return;
    const far = ahead + 2 * Math.abs(dx * direction[1] + dy * direction[0]);
    if (!best || far < best.far) best = { far, place };
  });
  if (best) tell(best.place);
}

async function place(question) {
  if (!question || !current) return;
  const { store } = state;
  const mine = current;
  mine.near.replaceChildren(el("h2", {}, "Found for it"), skeleton(3));
  try {
    const [where, found] = await Promise.all([get(withQuery("map/question", { store: store.name, query: question })), get(withQuery("search", { store: store.name, query: question, k: 5 }))]);
    if (mine !== current) return;
    mark(where, found.results);
  } catch (error) {
    mine.question.replaceChildren();
    mine.near.replaceChildren(problem(error));
  }
}

function mark(where, results) {
  const { question, points, told, near } = current;
  const [x, y] = [across(where.x), down(where.y)];
  const places = new Map(told.points.map((point, place) => [point.passage_id, place]));
  points.forEach((node) => node.classList.remove("found"));
  const lines = results.map((each) => places.get(each.passage_id)).filter((each) => each !== undefined).map((each) => {
    points[each].classList.add("found");
    const point = told.points[each];
    return svg("line", { x1: x, y1: y, x2: across(point.x), y2: down(point.y) });
  });
  question.replaceChildren(...lines, svg("circle", { class: "halo", cx: x, cy: y, r: 26 }), svg("circle", { class: "core", cx: x, cy: y, r: 9 }));
  const list = el("ol", { class: "found-list" }, results.map((each) => {
    const link = el("a", { href: each.url }, el("span", { class: "title" }, each.source), el("span", { class: "snippet" }, each.content.slice(0, 140).replace(/\s+/g, " "), "…"));
    link.addEventListener("click", (event) => {
      event.preventDefault();
      reader.open(each.url, link);
    });
    return el("li", {}, link);
  }));
  near.replaceChildren(el("h2", {}, "Found for it"), results.length ? list : el("p", {}, "Nothing was found."));
}
