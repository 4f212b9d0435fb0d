// Starts the page: views by the address, stores, the key, whether the server is there.

import { conversation, events, key, Refused, Unreachable } from "./api.js";
import * as ask from "./ask.js";
import { byId, el, icon, sentence } from "./dom.js";
import * as documents from "./documents.js";
import * as map from "./map.js";
import * as reader from "./reader.js";
import { changes, choose, refresh, state } from "./state.js";
import * as uploads from "./uploads.js";

const VIEWS = { ask, documents, map };
const TITLES = { ask: "Ask", documents: "Documents", map: "Map" };
const LOOK_SECONDS = 3;

function show() {
  const wanted = location.hash.slice(1);
  // An address within the page, such as that of its content, leaves the view as it is.
  const name = Object.hasOwn(VIEWS, wanted) ? wanted : document.body.dataset.view || "ask";
  for (const each of Object.keys(VIEWS)) byId(`view-${each}`).hidden = each !== name;
  for (const link of document.querySelectorAll("a[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = name;
  document.title = `${TITLES[name]} · clara`;
  VIEWS[name].shown();
}

function drawStores() {
  const several = state.stores.length > 1;
  byId("store-picker").hidden = !several;
  byId("store").replaceChildren(...state.stores.map((each) => el("option", { value: each.name, selected: each === state.store }, each.name)));
  byId("key-button").hidden = !key.get();
}

// The server is gone or back.

let lost = 0;

/** Say something above all views, with what can be done about it. */
function banner(text, action, onclick) {
  byId("banner").replaceChildren(...(text ? [icon("alert"), el("span", {}, text), el("button", { class: "link", type: "button", onclick }, action)] : []));
}

function onLost() {
  if (lost) return;
  banner("The server cannot be reached. What you wrote stays here; this page tries again by itself.", "Try now", look);
  lost = setInterval(look, LOOK_SECONDS * 1000);
}

async function look() {
  try {
    const answer = await fetch(new URL("healthz", document.baseURI), { cache: "no-store" });
    if (answer.ok) onReached();
  } catch {
    // still gone
  }
}

function onReached() {
  if (!lost) return;
  clearInterval(lost);
  lost = 0;
  start();
}

// The key.

function wantKey(problem) {
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  byId("key-forget").hidden = !key.get();
  byId("key-problem").hidden = !problem;
  byId("key-problem").textContent = problem || "";
  byId("key").value = "";
  dialog.showModal();
}

/** With what was told to who had it. */
function forgetKey() {
  key.forget();
  conversation.forget();
}

async function start() {
  try {
    await refresh();
    banner();
  } catch (error) {
    if (error instanceof Unreachable) return; // onLost has said it
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) banner("This server needs an API key.", "Enter the key", () => wantKey(""));
    else banner(`The server answered: ${sentence(error.message)}`, "Try again", start);
  }
}

events.addEventListener("lost", onLost);
events.addEventListener("reached", onReached);
addEventListener("offline", onLost);
addEventListener("online", look);
events.addEventListener("key-wanted", ({ detail }) => {
  const wrong = detail.code === "invalid_api_key";
  if (wrong) forgetKey();
  wantKey(wrong ? "The server does not know this key. Check that it is whole, or ask whoever runs the server for one." : "");
});
byId("key-button").addEventListener("click", () => wantKey(""));
byId("key-form").addEventListener("submit", () => {
  key.set(byId("key").value.trim());
  start();
});
byId("key-forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});

changes.addEventListener("stores", drawStores);
byId("store").addEventListener("change", (event) => choose(event.target.value));
addEventListener("hashchange", show);
// Another tab, or somebody else, may have added or removed documents.
addEventListener("focus", () => !lost && state.store && start());
addEventListener("keydown", (event) => {
  const typing = /^(input|textarea|select)$/i.test(event.target.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !document.querySelector("dialog:modal")) {
    event.preventDefault();
    location.hash = "ask";
    byId("question").focus();
  }
});

for (const part of [reader, uploads, ...Object.values(VIEWS)]) part.begin();
show();
start();
