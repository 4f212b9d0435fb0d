// The pane in which a document is read: beside the page where there is room, above it on a phone.

import { get, Refused, target, Unreachable, withQuery } from "./api.js";
import { byId, el, notice, several, skeleton } from "./dom.js";
import { changes } from "./state.js";
import * as text from "./text.js";

const WIDE = matchMedia("(min-width: 70rem)");
const SIZE = 40; // passages fetched at a time

let opener = null;
let reading = ""; // the document that is shown
let shown = 0; // counts openings, so that what comes late for an earlier one is dropped

/** Open a document where an address points. */
export async function open(address, from) {
  const dialog = byId("reader");
  const range = target(address);
  const mine = (shown += 1);
  opener = from || document.activeElement;
  byId("reader-title").textContent = "";
  byId("reader-place").textContent = "";
  byId("reader-open").href = address;
  byId("reader-open").hidden = false;
  byId("reader-body").replaceChildren(skeleton(8));
  if (!dialog.open) WIDE.matches ? dialog.show() : dialog.showModal();
  document.body.classList.toggle("reading", WIDE.matches);
  byId("reader-title").focus({ preventScroll: true });
  try {
    const told = await fetched(range.id, { char: `${range.start},${range.end}`, limit: SIZE });
    if (mine === shown) draw(told, range, () => open(address, opener));
  } catch (error) {
    if (mine === shown) failed(error, () => open(address, opener));
  }
}

/** Say instead of the text why there is none. */
function failed(error, retry) {
  reading = "";
  if (error.status === 404) {
    byId("reader-title").textContent = "No longer there";
    byId("reader-place").textContent = "";
    byId("reader-open").hidden = true;
    byId("reader-body").replaceChildren(notice({ kind: "bad", title: "This document has been removed.", text: "Answers come from what is there now: close this, and ask again.", actions: [el("button", { class: "button", type: "button", onclick: close }, "Close")] }));
    return;
  }
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
  byId("reader-title").textContent ||= "This document could not be opened";
  byId("reader-body").replaceChildren(notice({ kind: "bad", title: error.message, actions: [el("button", { class: "button", type: "button", onclick: retry }, "Try again")] }));
}

export function close() {
  byId("reader").close();
}

const fetched = (id, fields) => get(withQuery(`documents/${id}/passages`, fields));

function draw(told, range, retry) {
  const body = byId("reader-body");
  reading = told.id;
  byId("reader-title").textContent = told.filename;
  const held = told.passages.find((each) => each.start <= range.start && range.start < each.end);
  const page = held && held.page !== null ? held.page + held.breaks.filter((start) => start <= range.start).length : null;
  byId("reader-place").textContent = [page && `Page ${page}`, held?.heading, told.total && several(told.total, "passage")].filter(Boolean).join(" · ");
  const list = el("div", { class: "passages" });
  const [before, after] = [more("Earlier text"), more("Later text")];
  const edges = { first: told.first, last: told.first + told.passages.length, page: null };
  const append = (part) => {
    list.append(...text.passages(part.passages, range, edges.page));
    const last = part.passages.at(-1);
    edges.page = last && last.page !== null ? last.page + last.breaks.length : null;
  };
  append(told);
  before.hidden = edges.first === 0;
  after.hidden = edges.last >= told.total;
  const grows = (button, grow) => {
    let under = false; // a second click while the first is under way would show a part twice
    button.addEventListener("click", async () => {
      if (under) return;
      under = true;
      try {
        await grow();
        if (button.hidden) body.focus();
      } catch (error) {
        if (list.isConnected) failed(error, retry);
      }
      under = false;
    });
  };
  grows(before, async () => {
    const first = Math.max(0, edges.first - SIZE);
    const part = await fetched(told.id, { first, limit: edges.first - first });
    const from = body.scrollHeight - body.scrollTop;
    list.prepend(...text.passages(part.passages, range));
    edges.first = first;
    before.hidden = first === 0;
    body.scrollTop = body.scrollHeight - from;
  });
  grows(after, async () => {
    const part = await fetched(told.id, { first: edges.last, limit: SIZE });
    append(part);
    edges.last += part.passages.length;
    after.hidden = edges.last >= told.total;
  });
  const nothing = told.total === 0 && notice({ sign: "none", title: "This document holds no text." });
  body.replaceChildren(...[before, list, nothing, after].filter(Boolean));
  const mark = body.querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else body.scrollTop = 0;
}

/** A document that was removed meanwhile, here or in another tab, is not read on. */
async function check() {
  const id = reading;
  if (!id) return;
  try {
    await fetched(id, { limit: 1 });
  } catch (error) {
    if (error.status === 404 && id === reading) failed(error);
  }
}

const more = (label) => el("button", { class: "quiet more", type: "button" }, label);

export function begin() {
  const dialog = byId("reader");
  byId("reader-close").addEventListener("click", close);
  changes.addEventListener("stores", check);
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // the event comes late: it was opened again for another width
    reading = "";
    document.body.classList.remove("reading");
    opener?.isConnected && opener.focus();
  });
  addEventListener("keydown", (event) => {
    // A modal dialog closes by itself.
    if (event.key === "Escape" && dialog.open && !document.querySelector("dialog:modal")) close();
  });
  WIDE.addEventListener("change", () => {
    if (!dialog.open) return;
    const kept = opener;
    opener = null;
    dialog.close();
    WIDE.matches ? dialog.show() : dialog.showModal();
    opener = kept;
    document.body.classList.toggle("reading", WIDE.matches);
  });
}
