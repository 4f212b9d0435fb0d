// A map of the store: each point a passage, near what its memory is like. A question is placed among them.

import { get, Refused, Unreachable, v1, withQuery } from "./api.js";
import { last } from "./ask.js";
import { byId, count, el, notice, say, several, skeleton, svg } from "./dom.js";
import * as reader from "./reader.js";
import { changes, state } from "./state.js";

const MARGIN = 36;
const REACH = 24; // pixels from a point within which one points at it, by finger too
const LABELS = 14; // more documents than these are told apart by colour and by pointing alone
const LINE = 18; // height of a label
const COLOURS = 8;

let drawn = 0;
let current = null; // what `picture` made, of which store

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
  const there = body.contains(current?.plot) && current.store === store.name;
  if (there && current.version === version(store)) return placeWritten();
  if (!there) body.replaceChildren(el("div", { class: "plot" }, skeleton(6)));
  try {
    const told = await get(withQuery("map", { store: store.name }));
    if (mine !== drawn) return;
    current = { store: store.name, version: version(store), ...picture(told, body.querySelector(".plot").clientWidth) };
    byId("map-lead").textContent = told.points.length < told.passages ? `${count(told.points.length)} of ${several(told.passages, "passage")}, near each other where their memories are alike.` : `${several(told.passages, "passage")}, near each other where their memories are alike.`;
    body.replaceChildren(current.plot, current.aside);
    placeWritten();
  } catch (error) {
    if (mine === drawn) body.replaceChildren(problem(error));
  }
}

function problem(error) {
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
  return notice({ kind: "bad", title: error instanceof Unreachable ? "The server could not be reached." : error.message, actions: [el("button", { class: "button", type: "button", onclick: draw }, "Try again")] });
}

/** What changes with the documents of a store; a map of the same ones stays as it is, with what is pointed at. */
const version = ({ name, documents, passages, tokens }) => [name, documents, passages, tokens].join();

/** The map as it is drawn `width` pixels wide, so that its names and points are of one size on every screen. */
function picture(told, width) {
  const height = Math.round(Math.max(0.76 * width, 320));
  const across = (share) => MARGIN + share * (width - 2 * MARGIN);
  const down = (share) => MARGIN + share * (height - 2 * MARGIN);
  const radius = told.points.length > 400 ? 5 : 7;
  const names = Object.entries(told.documents);
  const most = new Map(names.map(([id]) => [id, 0]));
  for (const point of told.points) most.set(point.document, most.get(point.document) + 1);
  const ranked = names.sort(([one], [other]) => most.get(other) - most.get(one));
  const colour = new Map(ranked.map(([id], place) => [id, place < COLOURS ? place : "rest"]));
  const points = told.points.map((point, place) =>
    svg("circle", { id: `point-${place}`, role: "option", "aria-selected": "false", "aria-label": `${told.documents[point.document]}: ${point.text}`, class: `point c-${colour.get(point.document)}`, cx: across(point.x).toFixed(1), cy: down(point.y).toFixed(1), r: radius }),
  );
  const [lines, question] = ["lines", "question-mark"].map((name) => svg("g", { class: name, "aria-hidden": "true" }));
  const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "presentation" }, lines, points, labels(told, ranked, { across, down, width }), question);
  const nearest = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(image.getScreenCTM().inverse());
    const far = told.points.map((point) => Math.hypot(across(point.x) - at.x, down(point.y) - at.y));
    const least = Math.min(...far);
    return least <= REACH ? far.indexOf(least) : null;
  };
  image.addEventListener("pointermove", (event) => {
    const place = nearest(event);
    image.classList.toggle("pointed", place !== null);
    if (place !== null && place !== current.at) tell(place);
  });
  image.addEventListener("click", (event) => {
    const place = nearest(event);
    if (place !== null) open(place, board);
  });
  const board = el("div", { class: "board", role: "listbox", tabindex: "0", "aria-label": "Passages. Arrow keys go to the next one in that direction, Enter reads it.", onkeydown: keys, onfocus: () => tell(current.at) }, image);
  const caption = el("p", { class: "told" }, matchMedia("(pointer: coarse)").matches ? "Tap a passage to read it." : "Point at a passage to see how it begins; click to read it.");
  const legend = el("ul", { class: "legend", "aria-label": "Documents" }, ranked.slice(0, COLOURS).map(([id, name], place) => el("li", { onpointerenter: () => only(id), onpointerleave: () => only(null) }, el("span", { class: `swatch c-${place}`, "aria-hidden": "true" }), name)), ranked.length > COLOURS && el("li", {}, el("span", { class: "swatch c-rest", "aria-hidden": "true" }), several(ranked.length - COLOURS, "more document")));
  const near = el("div", { class: "near" });
  return { told, points, at: 0, across, down, lines, question, caption, near, plot: el("div", { class: "plot" }, board, caption), aside: el("aside", { class: "map-aside" }, near, el("h2", {}, "Documents"), legend) };
}

/** Names of the documents at the middle of their passages, where there is room; the others are told by pointing. */
function labels(told, ranked, { across, down, width }) {
  if (ranked.length > LABELS) return [];
  const taken = told.points.map((point) => ({ left: across(point.x) - 9, right: across(point.x) + 9, top: down(point.y) - 9, bottom: down(point.y) + 9 }));
  return ranked.map(([id, name]) => {
    const mine = told.points.filter((point) => point.document === id);
    const middle = (axis) => mine.reduce((sum, point) => sum + point[axis], 0) / mine.length;
    const [x, y] = [across(middle("x")), down(middle("y"))];
    const short = name.length > 24 ? `${name.slice(0, 23)}…` : name;
    const half = 3.9 * short.length; // of its length, about
    const within = Math.min(Math.max(x, half + 4), width - half - 4);
    const places = [[within, y - 20], [within, y + 20], [x + half + 14, y], [x - half - 14, y]];
    const boxes = places.map(([left, top]) => ({ x: left, y: top, left: left - half, right: left + half, top: top - LINE / 2, bottom: top + LINE / 2 }));
    const free = boxes.find((box) => box.left >= 0 && box.right <= width && !taken.some((other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom));
    if (!free) return null;
    taken.push(free);
    return svg("text", { class: "map-label", "aria-hidden": "true", x: free.x.toFixed(1), y: (free.y + 5).toFixed(1) }, short);
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

function placeWritten() {
  const question = byId("map-query").value.trim();
  if (question && question !== current.placed) place(question);
}

async function place(question) {
  if (!question || !current) return;
  current.placed = question;
  const { store } = state;
  const mine = current;
  mine.near.replaceChildren(el("h2", {}, "Passages found"), skeleton(3));
  try {
    const [where, found] = await Promise.all([get(withQuery("map/question", { store: store.name, query: question })), get(withQuery("search", { store: store.name, query: question, k: 5 }))]);
    // Another map, or a later question on this one, may have come meanwhile.
    if (mine === current && mine.placed === question) mark(where, found.results);
  } catch (error) {
    if (mine.placed !== question) return;
    mine.placed = "";
    mine.question.replaceChildren();
    mine.lines.replaceChildren();
    mine.near.replaceChildren(problem(error));
  }
}

function mark(where, results) {
  const { question, lines, points, told, near, across, down } = current;
  const [x, y] = [across(where.x), down(where.y)];
  const places = new Map(told.points.map((point, place) => [point.passage_id, place]));
  points.forEach((node) => node.classList.remove("found"));
  lines.replaceChildren(...results.map((each) => places.get(each.passage_id)).filter((each) => each !== undefined).map((each) => {
    points[each].classList.add("found");
    const point = told.points[each];
    return svg("line", { x1: x, y1: y, x2: across(point.x), y2: down(point.y) });
  }));
  question.replaceChildren(svg("circle", { class: "halo", cx: x, cy: y, r: 15 }), svg("circle", { class: "core", cx: x, cy: y, r: 6 }));
  const list = el("ol", { class: "found-list" }, results.map((each) => {
    const link = el("a", { href: each.url }, el("span", { class: "title" }, each.source), el("span", { class: "snippet" }, each.content.slice(0, 140).replace(/\s+/g, " "), "…"));
    link.addEventListener("click", (event) => {
      event.preventDefault();
      reader.open(each.url, link);
    });
    return el("li", {}, link);
  }));
  near.replaceChildren(el("h2", {}, "Passages found"), results.length ? list : el("p", {}, "Nothing was found."));
  say(`${several(results.length, "passage")} found, ${results.map((each) => each.source).join(", ")}`);
}
