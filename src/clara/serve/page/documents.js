// The documents of a store: what they take, adding and removing them.

import { get, pause, Refused, send, stream, Unreachable, upload, v1, withQuery } from "./api.js";
import { storeSize } from "./ask.js";
import { byId, bytes, count, el, icon, meter, notice, several, skeleton } from "./dom.js";
import * as reader from "./reader.js";
import { changes, refresh, state } from "./state.js";

const PAGE = 100;
const ALL = 10_000;
const FILTERED = 12; // documents; fewer are seen at a glance
const AT_ONCE = 2; // uploads: one is sent while another is indexed

let listed = [];
let total = 0;
let drawn = 0; // counts drawings, so that a late list of another store is dropped

export function shown() {
  head();
  list();
}

export function begin() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = "";
  });
  byId("filter").addEventListener("input", async () => {
    if (listed.length < total) await list(ALL);
    rows();
  });
  changes.addEventListener("stores", () => {
    head();
    if (!byId("view-documents").hidden) list();
  });
  changes.addEventListener("chosen", () => (byId("filter").value = ""));
  dropping();
}

function head() {
  const { store, limits } = state;
  byId("drop").hidden = !store?.write;
  byId("documents-meter").hidden = !store?.documents;
  if (!store) return;
  byId("documents-lead").textContent = store.documents ? `${several(store.documents, "document")} in ${store.name}` : `${store.name} is empty.`;
  if (store.documents) byId("documents-meter").replaceChildren(...meter(storeSize(store)));
  if (!store.write) byId("documents-lead").textContent += " You may read them; your key may not add or remove any.";
  byId("drop-hint").textContent = `Text, Markdown, HTML, PDF, Word and more, up to ${bytes(limits.file_bytes)} each. A file of the same name takes the place of the one before.`;
  byId("drop-store").textContent = store.name;
}

async function list(limit = PAGE) {
  const { store } = state;
  const box = byId("documents-list");
  const mine = (drawn += 1);
  if (!store) return box.replaceChildren();
  if (!box.childElementCount) box.replaceChildren(skeleton(6));
  try {
    const told = await get(withQuery("documents", { store: store.name, limit: Math.max(limit, Math.min(listed.length, ALL)) }));
    if (mine !== drawn) return;
    listed = told.data;
    total = told.total;
    rows();
  } catch (error) {
    if (mine === drawn) box.replaceChildren(problem(error, () => list(limit)));
  }
}

function rows() {
  const box = byId("documents-list");
  const words = byId("filter").value.trim().toLowerCase();
  byId("filter-label").hidden = total <= FILTERED && !words;
  const found = listed.filter((each) => each.filename.toLowerCase().includes(words));
  if (!total) return box.replaceChildren();
  if (!found.length) return box.replaceChildren(notice({ sign: "none", kind: "none", title: `No name holds “${words}”.` }));
  const head = ["Name", "Text", "Memory"].map((name) => el("th", { scope: "col", role: "columnheader" }, name));
  const table = el("table", { role: "table", "aria-labelledby": "documents-title" }, el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head, state.store.write && el("th", { scope: "col", role: "columnheader" }, el("span", { class: "visually-hidden" }, "Remove")))), el("tbody", { role: "rowgroup" }, found.map(row)));
  const rest = total > listed.length && el("button", { class: "quiet more", type: "button", onclick: () => list(listed.length + PAGE) }, `Show more of ${count(total)}`);
  box.replaceChildren(...[table, rest].filter(Boolean));
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
    { role: "row" },
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
    said(`${document.filename} was removed`);
  } catch (error) {
    if (!(error instanceof Refused && error.status === 404)) {
      byId("uploads").prepend(el("li", { class: "upload failed" }, problem(error)));
      return;
    }
  }
  await refresh();
}

const said = (text) => (byId("uploads-said").textContent = text);

// Uploads: a few at a time, each with its own job, so that each tells its own progress and fault.

const waiting = [];
let working = 0;

function add(files) {
  const { store, limits } = state;
  if (!store?.write || !files.length) return;
  location.hash = "documents";
  for (const file of files) {
    const entry = uploadRow(file, store);
    byId("uploads").prepend(entry.node);
    if (file.size > limits.file_bytes) entry.failed(`${bytes(file.size)} is more than the ${bytes(limits.file_bytes)} that this server takes.`);
    else waiting.push(entry);
  }
  while (working < AT_ONCE && waiting.length) work();
}

async function work() {
  working += 1;
  for (let entry = waiting.shift(); entry; entry = waiting.shift()) {
    await entry.run();
    await refresh().catch((error) => said(error.message));
  }
  working -= 1;
}

function uploadRow(file, store) {
  const controller = new AbortController();
  const bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${file.name}` });
  const status = el("span", { class: "status" }, "waiting");
  const dismiss = el("button", { class: "quiet icon-only", type: "button", "aria-label": `Stop ${file.name}`, title: "Stop" }, icon("close"));
  const node = el("li", { class: "upload" }, icon("file"), el("span", { class: "name" }, file.name), status, bar, dismiss);
  dismiss.addEventListener("click", () => {
    controller.abort();
    node.remove();
  });

  function ended(kind, text) {
    node.classList.add(kind);
    bar.remove();
    status.textContent = text;
    dismiss.setAttribute("aria-label", `Clear ${file.name} from the list`);
    dismiss.title = "Clear";
    said(`${file.name}: ${text}`);
  }
  const failed = (text) => ended("failed", text);

  function told(job) {
    if (job.status === "queued") status.textContent = "waiting for its turn";
    if (job.status !== "running") return;
    status.textContent = job.passages_expected ? `indexing, ${count(job.passages)} of about ${several(job.passages_expected, "passage")}` : "reading";
    if (job.passages_expected) bar.value = 0.5 + (0.5 * job.passages) / Math.max(job.passages_expected, 1);
  }

  async function run() {
    if (controller.signal.aborted) return;
    try {
      status.textContent = "uploading";
      let job = await accepted();
      for await (const each of stream(v1(`documents/jobs/${job.id}/events`), { signal: controller.signal })) told((job = each));
      if (job.error) failed(job.error.message);
      else if (job.failures.length) failed(job.failures.map(reason).join(" "));
      else ended("done", job.updated ? "took the place of the one before" : job.unchanged ? "was there already" : `added, ${several(job.passages, "passage")}`);
    } catch (error) {
      if (error.name === "AbortError") return;
      failed(error.message);
    }
  }

  /** The job; where the queue of jobs is full, later. */
  async function accepted() {
    for (;;) {
      try {
        return await upload(store.name, file, (share) => (bar.value = share / 2), controller.signal);
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 429) throw error;
        status.textContent = "the server is busy; tries again";
        await pause(Math.min(error.retryAfter || 5, 30), controller.signal);
      }
    }
  }
  return { node, run, failed };
}

/** Why a file failed; its name stands beside it. */
function reason(failure) {
  return (failure.message || failure.reason).replace(`${failure.file}: `, "");
}

function dropping() {
  const over = byId("drop-anywhere");
  let depth = 0;
  const files = (event) => state.store?.write && event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!files(event)) return;
    depth += 1;
    over.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    over.hidden = depth === 0;
  });
  addEventListener("dragover", (event) => files(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    over.hidden = true;
    add(await dropped(event.dataTransfer));
  });
}

/** The files of a drop, those in folders too. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return new Promise((resolve) => entry.file((file) => resolve([file]), () => resolve([])));
  const folder = entry.createReader();
  const found = [];
  for (;;) {
    const part = await new Promise((resolve) => folder.readEntries(resolve, () => resolve([])));
    if (!part.length) return (await Promise.all(found.map(inside))).flat();
    found.push(...part.filter((each) => !each.name.startsWith(".")));
  }
}

function problem(error, retry) {
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
  const action = retry ? [el("button", { class: "button", type: "button", onclick: retry }, "Try again")] : [];
  return notice({ kind: "bad", title: error instanceof Unreachable ? "The server could not be reached." : error.message, actions: action });
}
