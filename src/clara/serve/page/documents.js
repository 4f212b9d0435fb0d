// The documents of a store: what they take, and removing them. Adding them is in uploads.js.

import { get, Refused, send, Unreachable, v1, withQuery } from "./api.js";
import { storeSize } from "./ask.js";
import { byId, bytes, count, el, icon, meter, notice, say, several, skeleton } from "./dom.js";
import * as reader from "./reader.js";
import { changes, refresh, state } from "./state.js";

const PAGE = 100;
const ALL = 10_000;
const FILTERED = 12; // documents; fewer are seen at a glance

let listed = [];
let total = 0;
let drawn = 0; // counts drawings, so that a late list of another store is dropped
let held = ""; // what the rows show, so that they are left alone where nothing changed

export function shown() {
  head();
  list();
}

export function begin() {
  byId("filter").addEventListener("input", async () => {
    if (listed.length < total) await list(ALL);
    rows();
  });
  changes.addEventListener("stores", () => {
    head();
    if (!byId("view-documents").hidden) list();
  });
  changes.addEventListener("chosen", () => {
    byId("filter").value = "";
    [listed, total] = [[], 0];
    draw(skeleton(6));
  });
}

function head() {
  const { store, limits } = state;
  byId("drop").hidden = !store?.write;
  byId("documents-meter").hidden = !store?.documents;
  if (!store) return;
  byId("documents-lead").textContent = store.documents ? `${several(store.documents, "document")} in ${store.name}` : `There are no documents in ${store.name} yet.`;
  if (store.documents) byId("documents-meter").replaceChildren(...meter(storeSize(store)));
  if (!store.write) byId("documents-lead").textContent += " You may read them; your key may not add or remove any.";
  byId("drop-hint").textContent = `Text, Markdown, HTML, PDF, Word and more, up to ${bytes(limits.file_bytes)} each. A file of the same name takes the place of the one before.`;
  byId("drop-store").textContent = store.name;
}

async function list(limit = PAGE) {
  const { store } = state;
  const box = byId("documents-list");
  const mine = (drawn += 1);
  if (!store) return draw();
  if (!box.childElementCount) draw(skeleton(6));
  try {
    const told = await get(withQuery("documents", { store: store.name, limit: Math.max(limit, Math.min(listed.length, ALL)) }));
    if (mine !== drawn) return;
    listed = told.data;
    total = told.total;
    rows();
  } catch (error) {
    if (mine === drawn) draw(problem(error, () => list(limit)));
  }
}

function draw(...children) {
  held = "";
  byId("documents-list").replaceChildren(...children);
}

function rows() {
  const words = byId("filter").value.trim().toLowerCase();
  byId("filter-label").hidden = total <= FILTERED && !words;
  const found = listed.filter((each) => each.filename.toLowerCase().includes(words));
  const showing = JSON.stringify([state.store, total, found]);
  if (showing === held) return;
  if (!total) return draw();
  if (!found.length) return draw(notice({ sign: "none", kind: "none", title: `No name holds “${words}”.` }));
  const head = ["Name", "Text", "Memory"].map((name) => el("th", { scope: "col", role: "columnheader" }, name));
  const table = el("table", { role: "table", "aria-labelledby": "documents-title" }, el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head, state.store.write && el("th", { scope: "col", role: "columnheader" }, el("span", { class: "visually-hidden" }, "Remove")))), el("tbody", { role: "rowgroup" }, found.map(row)));
  const rest = total > listed.length && el("button", { class: "quiet more", type: "button", onclick: () => list(listed.length + PAGE) }, `Show more of ${count(total)}`);
  const focusAgain = focus(byId("documents-list"));
  draw(...[table, rest].filter(Boolean));
  held = showing;
  focusAgain();
}

/** Remembers where the focus is; the function puts it there again, or on the row that came into that place. */
function focus(box) {
  const rowsOf = () => [...box.querySelectorAll("tbody tr")];
  const node = box.contains(document.activeElement) ? document.activeElement : null;
  const [before, row, kind] = [rowsOf(), node?.closest("tr"), node?.closest("td.act") ? "td.act button" : "button"];
  return () => {
    if (!node) return;
    const after = rowsOf();
    // Without a row it was "Show more".
    const place = row ? Math.min(before.indexOf(row), after.length - 1) : before.length;
    (after.find((each) => each.dataset.id === row?.dataset.id) || after[place])?.querySelector(kind).focus();
  };
}

function row(document) {
  const address = v1(`documents/${document.id}`).href;
  const cell = (label, number, unit, size) => el("td", { role: "cell", class: "size", "data-label": label }, el("span", { class: "amount" }, `${count(number)} ${unit}`), el("span", { class: "hint" }, size));
  const name = el("button", { class: "link name", type: "button" }, icon("file"), el("span", {}, document.filename));
  name.addEventListener("click", () => reader.open(address, name));
  const remove = el("button", { class: "quiet icon-only", type: "button", "aria-label": `Remove ${document.filename}`, title: "Remove" }, icon("close"));
  remove.addEventListener("click", () => ask(document));
  return el(
    "tr",
    { role: "row", "data-id": document.id },
    el("td", { role: "cell" }, name),
    cell("Text", document.tokens, "tokens", several(document.characters, "character")),
    cell("Memory", document.memory_tokens, "tokens", bytes(document.memory_bytes)),
    state.store.write && el("td", { role: "cell", class: "act" }, remove),
  );
}

function ask(document) {
  const dialog = byId("remove-dialog");
  byId("remove-text").textContent = `“${document.filename}” and its ${several(document.passages, "passage")} go from ${state.store.name}. A file that was uploaded is deleted.`;
  dialog.returnValue = "keep";
  dialog.onclose = () => dialog.returnValue === "remove" && remove(document);
  dialog.showModal();
}

async function remove(document) {
  try {
    await send(v1(`documents/${document.id}`), { method: "DELETE" });
    say(`${document.filename} was removed`);
    await refresh();
    if (!total) byId("choose").focus();
  } catch (error) {
    if (error.status === 404) return refresh(); // another tab was first
    held = "";
    byId("documents-list").prepend(problem(error));
  }
}

function problem(error, retry) {
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
  const action = retry ? [el("button", { class: "button", type: "button", onclick: retry }, "Try again")] : [];
  return notice({ kind: "bad", title: error instanceof Unreachable ? "The server could not be reached." : error.message, actions: action });
}
