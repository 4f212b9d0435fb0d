// Uploads and the jobs that index them, also those that another tab began: a row each, with its progress and why it failed.

import { get, pause, Refused, stream, Unreachable, upload, v1, withQuery } from "./api.js";
import { byId, bytes, count, el, icon, say, sentence, several } from "./dom.js";
import { changes, refresh, state } from "./state.js";

const AT_ONCE = 2; // uploads: one is sent while another is indexed
const AGAIN_SECONDS = 3;
const BUSY = "the server is busy; tries again by itself";

const waiting = [];
const followed = new Map(); // rows by the id of their job
const rows = new Set();
let working = 0;
let sending = 0;
let turn = Promise.resolve(); // jobs run one after another and are followed so: a browser opens few connections to a server

export function begin() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = "";
  });
  changes.addEventListener("stores", () => {
    tally();
    look().catch(passedOver);
  });
  addEventListener("beforeunload", (event) => (sending || waiting.length) && event.preventDefault());
  dropping();
}

/** Follow the jobs of the chosen store, whoever began them. */
async function look() {
  if (!state.store) return;
  const told = await get(withQuery("documents/jobs", { store: state.store.name }));
  for (const job of told.data) {
    if (followed.has(job.id)) continue;
    const row = newRow(job.files === 1 ? job.filenames[0] : several(job.files, "file"), job.store);
    follow(row, job).then(refresh).catch(passedOver);
  }
}

/** What the banner or the key's dialog says. */
function passedOver(error) {
  if (!(error instanceof Refused) && !(error instanceof Unreachable)) throw error;
}

/** Tell a row how its job goes on, until it has ended. */
function follow(row, job) {
  followed.get(job.id)?.remove(); // it was seen in the list before the upload was answered
  followed.set(job.id, row);
  row.taken();
  row.told(job);
  const watched = turn.then(() => watch(row, job));
  turn = watched;
  return watched;
}

async function watch(row, job) {
  const { signal } = row;
  try {
    for (;;) {
      try {
        for await (const each of stream(v1(`documents/jobs/${job.id}/events`), { signal })) row.told((job = each));
        if (job.status === "done" || job.status === "failed") return row.result(job);
        row.says("the server ends; it goes on when it is back");
        await pause(AGAIN_SECONDS, signal);
      } catch (error) {
        if (!(error instanceof Unreachable) && error.status !== 429) throw error;
        row.says(error instanceof Unreachable ? "the server is away; it goes on when it is back" : BUSY);
        await pause(error.retryAfter || AGAIN_SECONDS, signal);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    followed.delete(job.id);
    if (error.status === 401) row.remove(); // it is found again with the key
    else row.failed(error.status === 404 ? "The server no longer knows this job. The list below shows what was added." : error.message);
  }
}

function add(files) {
  const { store, limits } = state;
  if (!store?.write || !files.length) return;
  location.hash = "documents";
  for (const file of files) {
    const row = newRow(file.name, store.name);
    if (file.size > limits.file_bytes) row.failed(`${bytes(file.size)} is more than the ${bytes(limits.file_bytes)} that this server takes. Split the file, or ask who runs the server for more (--max-file-mb).`);
    else waiting.push({ file, store, row });
  }
  work();
}

async function work() {
  if (working === AT_ONCE || !waiting.length) return;
  working += 1;
  const mine = waiting.shift();
  work();
  await run(mine);
  await refresh().catch(passedOver);
  working -= 1;
  work();
}

async function run({ file, store, row }) {
  const retry = () => {
    row.remove();
    waiting.push({ file, store, row: newRow(file.name, store.name) });
    work();
  };
  if (row.signal.aborted) return;
  try {
    await follow(row, await accepted(file, store, row));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Unreachable) row.failed("The connection broke off before the whole file was sent.", retry);
    else if (error.status === 401) row.failed("The server needs a key. Enter it, then try again.", retry);
    else row.failed(error.message);
  }
}

/** The job of an uploaded file; where the queue of jobs is full, later. */
async function accepted(file, store, row) {
  sending += 1;
  try {
    for (;;) {
      try {
        row.says("uploading");
        return await upload(store.name, file, row.sent, row.signal);
      } catch (error) {
        if (error.status !== 429) throw error;
        row.says(BUSY);
        await pause(Math.min(error.retryAfter || 5, 30), row.signal);
      }
    }
  } finally {
    sending -= 1;
  }
}

/** A row at the top of the list, for as long as its store is the chosen one. */
function newRow(name, store) {
  const controller = new AbortController();
  const bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
  const status = el("span", { class: "status" }, "waiting");
  const clear = el("button", { class: "quiet icon-only", type: "button", onclick: remove }, icon("close"));
  const node = el("li", { class: "upload" }, icon("file"), el("span", { class: "name" }, name), status, bar, clear);
  const label = (verb, title) => {
    clear.setAttribute("aria-label", `${verb} ${name}`);
    clear.title = title;
  };
  label("Stop", "Stop");
  byId("uploads").prepend(node);

  function remove() {
    const next = node.nextElementSibling || node.previousElementSibling;
    const focused = node.contains(document.activeElement);
    controller.abort();
    node.remove();
    rows.delete(row);
    tally();
    if (focused) (next?.querySelector("button") || byId("choose")).focus();
  }

  function ended(kind, text, ...more) {
    row.open = false;
    tally();
    node.classList.add(kind);
    bar.remove();
    status.textContent = text;
    for (const each of more) status.append(" ", each);
    label("Clear", "Clear");
    say(`${name}: ${status.textContent}`);
  }

  const row = {
    node,
    store,
    open: true,
    signal: controller.signal,
    remove,
    says: (text) => (status.textContent = text),
    sent: (share) => (bar.value = share / 2),
    taken: () => label("Hide the progress of", "Hide. The server goes on."),
    failed: (text, retry) => ended("failed", sentence(text), ...(retry ? [el("button", { class: "link", type: "button", onclick: retry }, "Try again")] : [])),
    told(job) {
      if (job.status === "queued") status.textContent = "waiting for its turn";
      if (job.status !== "running") return;
      const files = job.files > 1 && job.files_done ? `${count(job.files_done)} of ${several(job.files, "file")}, ` : "";
      status.textContent = job.passages_expected ? `indexing, ${files}${count(job.passages)} of about ${several(job.passages_expected, "passage")}` : "reading";
      if (job.passages_expected) bar.value = 0.5 + (0.5 * job.passages) / job.passages_expected;
    },
    result(job) {
      const kept = job.added + job.updated + job.unchanged;
      if (job.error) ended("failed", sentence(job.error.message));
      else if (!job.failures.length) ended("done", outcome(job));
      else if (job.files === 1 && !kept) ended("failed", job.failures.map(reason).join("; "));
      else ended(kept ? "partly" : "failed", kept ? `${outcome(job)}; left out:` : "nothing could be read:", faults(job));
    },
  };
  rows.add(row);
  tally();
  return row;
}

/** Show the rows of the chosen store, and count those that are not at their end. */
function tally() {
  const mine = [...rows].filter((row) => row.store === state.store?.name);
  for (const row of rows) row.node.hidden = !mine.includes(row);
  state.indexing = mine.filter((row) => row.open).length;
  document.body.classList.toggle("indexing", state.indexing > 0);
  changes.dispatchEvent(new Event("indexing"));
}

function outcome(job) {
  if (job.files > 1) return [job.added && `${count(job.added)} added`, job.updated && `${count(job.updated)} replaced`, job.unchanged && `${count(job.unchanged)} there already`].filter(Boolean).join(", ");
  return job.updated ? "took the place of the one before" : job.unchanged ? "was there already" : ["added", job.passages && several(job.passages, "passage")].filter(Boolean).join(", ");
}

const faults = (job) => el("ul", { class: "faults" }, job.failures.map((each) => el("li", {}, job.files > 1 && el("strong", {}, `${each.file}: `), reason(each))));

/** Why a file failed; its name stands beside it. */
const reason = (failure) => (failure.message || failure.reason).replace(`${failure.file}: `, "");

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
