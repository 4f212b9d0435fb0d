// The conversation: a question, its streamed answer, where the answer stands, what it cost, and how else it is read.

import { conversation, get, pause, Refused, stream, target, Unreachable, v1, withQuery } from "./api.js";
import { byId, count, el, fewer, meter, notice, say, several, skeleton } from "./dom.js";
import * as reader from "./reader.js";
import { changes, refresh, state } from "./state.js";
import { snippet } from "./text.js";

const BUSY_TRIES = 5;
const COMPARED = { memory: "Memories", text: "Full text", none: "Nothing" };
const EXPLAINED = {
  memory: "The passages as memory tokens.",
  text: "The same passages, word for word.",
  none: "No passage: what the model alone would say.",
};

const LOOKING = "The question's memory points at";

let talk = []; // turns as they are kept: question, options, what the server told once it has, words of its lens
let running = null; // the AbortController of the answer being written
let lens = new AbortController(); // of the lens of the last answer
export const last = { question: "" };

export function shown() {
  if (!matchMedia("(pointer: coarse)").matches) byId("question").focus({ preventScroll: true });
}

export function begin() {
  let kept = JSON.parse(conversation.get() || "null");
  state.wanted = kept?.store || "";
  const question = byId("question");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    if (!state.store) {
      // The stores are still to come; or the key is asked for, or it is said that the server is gone.
      refresh()
        .then(() => state.store && byId("composer").requestSubmit())
        .catch((error) => say(error.message));
      return;
    }
    question.value = "";
    grow();
    ask(text);
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer").requestSubmit();
    } else if (event.key === "ArrowUp" && !question.value && last.question) {
      event.preventDefault();
      question.value = last.question;
      grow();
    }
  });
  question.addEventListener("input", grow);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-talk").addEventListener("click", clear);
  changes.addEventListener("chosen", () => {
    kept = null;
    clear();
  });
  changes.addEventListener("stores", () => {
    if (kept && state.store) {
      restore(kept.talk);
      kept = null;
    }
    welcome();
  });
  changes.addEventListener("indexing", welcome);
}

function grow() {
  const question = byId("question");
  question.style.blockSize = "auto";
  question.style.blockSize = `${Math.min(question.scrollHeight, 240)}px`;
}

function clear() {
  running?.abort();
  talk = [];
  keep();
  byId("thread").replaceChildren();
  byId("new-talk").hidden = true;
  document.body.classList.remove("talking");
  welcome();
  shown();
}

/** Let the conversation outlast a reload. */
function keep() {
  if (talk.length) conversation.set(JSON.stringify({ store: state.store.name, talk }));
  else conversation.forget();
}

/** Show a conversation as it was; nothing is asked again. */
function restore(kept) {
  talk = kept;
  for (const entry of talk) {
    const turn = newTurn(entry);
    if (entry.told) {
      finish(turn, entry);
      showWords(turn, entry.words || []);
    } else failed(turn, new DOMException("the page was left", "AbortError"), entry);
  }
}

/** The messages that end with an entry's question; a follow-up goes on from answers alone. */
function messagesTo(entry) {
  const answered = talk.slice(0, talk.indexOf(entry)).filter(({ told }) => told && (told.clara.asked_back || told.clara.answered !== false));
  const pairs = answered.map(({ question, told }) => [{ role: "user", content: question }, { role: "assistant", content: told.text }]);
  return [...pairs.flat(), { role: "user", content: entry.question }];
}

function welcome() {
  const store = state.store;
  const about = byId("welcome-text");
  const size = byId("welcome-meter");
  const empty = !store || store.documents === 0;
  size.hidden = empty;
  byId("welcome-actions").hidden = !store || !empty || !store.write;
  byId("context-picker").hidden = Boolean(store?.llm); // a language model behind the server reads text alone
  if (!store) about.textContent = state.stores.length ? "" : "Your key opens no store of this server.";
  else if (empty && state.indexing) about.textContent = `Documents are being added to ${store.name}. Ask when the first is in.`;
  else if (empty) about.textContent = `There are no documents in ${store.name} yet.${store.write ? " Add some, and ask what they say." : " Ask whoever runs the server to add some."}`;
  else {
    about.textContent = `Answers come from the ${several(store.documents, "document")} in ${store.name}, and each shows its source.`;
    size.replaceChildren(...meter(storeSize(store)));
  }
  byId("question").placeholder = talk.length ? "Ask a follow-up" : "Ask a question";
}

/** What a store takes as text and as memory, for `meter`. */
export function storeSize(store) {
  return {
    text: store.tokens,
    read: store.memory_tokens,
    textLabel: "tokens of text",
    readLabel: "memory tokens",
    summary: [several(store.passages, "passage"), `compressed ${store.rate}x`, fewer(store.tokens, store.memory_tokens)].filter(Boolean).join(" · "),
  };
}

function busy(controller) {
  const [shown, hidden] = controller ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
  const focused = document.activeElement === hidden;
  running = controller;
  shown.hidden = false;
  hidden.hidden = true;
  if (focused) shown.focus();
}

/** Ask; what is said of it goes into a turn of the conversation. */
async function ask(question, options = {}) {
  const store = state.store;
  const entry = { question, options };
  talk.push(entry);
  keep();
  const turn = newTurn(entry);
  const controller = new AbortController();
  const messages = messagesTo(entry);
  const fields = { ...(store.llm ? {} : { context: byId("context").value }), ...options };
  lens.abort();
  turn.answer.setAttribute("aria-busy", "true");
  busy(controller);
  say("Searching");
  try {
    entry.told = await patient(turn, controller.signal, () => answer(turn, { store, messages, fields, signal: controller.signal }));
    keep();
    say(entry.told.text);
    byId("question").placeholder = "Ask a follow-up";
    finish(turn, entry);
    if (!entry.told.clara.asked_back) looking(turn, entry);
  } catch (error) {
    failed(turn, error, entry);
  } finally {
    turn.answer.removeAttribute("aria-busy");
    if (running === controller) busy(null);
  }
}

function again(turn, entry, options = entry.options) {
  if (running) return;
  turn.node.remove();
  talk = talk.filter((each) => each !== entry);
  ask(entry.question, options);
  byId("thread").lastElementChild.querySelector(".question").focus({ preventScroll: true });
}

/** A turn at the end of the conversation. */
function newTurn({ question }) {
  const answer = el("div", { class: "answer" }, skeleton(1));
  const under = el("div", { class: "under" });
  const looking = el("div", { class: "looking" }, el("span", { class: "label" }, LOOKING), el("span", { class: "chips waiting", "aria-hidden": "true" }, el("span"), el("span"), el("span")));
  const node = el("article", { class: "turn" }, el("h2", { class: "question", tabindex: "-1" }, question), answer, under);
  last.question = question;
  document.body.classList.add("talking");
  byId("new-talk").hidden = false;
  byId("thread").append(node);
  node.scrollIntoView({ block: "start" });
  return { node, looking, answer, under };
}

/** What `work` gives; where the server is busy, later, with the wait shown. */
async function patient(turn, signal, work) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 429 || tries >= BUSY_TRIES) throw error;
      say("The server is busy; waiting");
      for (let left = error.retryAfter || 2; left > 0; left -= 1) {
        turn.answer.replaceChildren(notice({ kind: "wait", sign: "clock", title: error.code === "rate_limit_exceeded" ? "This key has asked often." : "The server is busy.", text: `Asks again in ${left} s.`, actions: [el("button", { class: "button", type: "button", onclick: () => running?.abort() }, "Do not wait")] }));
        await pause(1, signal);
      }
      turn.answer.replaceChildren(skeleton(1));
    }
  }
}

/** Stream an answer into a turn. */
async function answer(turn, { store, messages, fields, signal }) {
  const started = performance.now();
  const line = el("p", { class: "said" });
  let text = "";
  let told = { clara: {}, annotations: [], usage: null };
  const body = { model: store.name, messages, stream: true, stream_options: { include_usage: true }, clara: fields };
  let whole = false;
  for await (const chunk of stream(v1("chat/completions"), { method: "POST", body, signal })) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) {
      if (!text) turn.answer.replaceChildren(line);
      text += choice.delta.content;
      line.textContent = text;
    }
    if (choice?.delta.annotations) told.annotations = choice.delta.annotations;
    if (chunk.clara) told.clara = chunk.clara;
    if (chunk.usage) told.usage = chunk.usage;
    whole ||= Boolean(choice?.finish_reason);
  }
  if (!whole) throw new Unreachable("the answer broke off");
  return { ...told, text: text.trim(), seconds: (performance.now() - started) / 1000 };
}

function finish(turn, entry) {
  const { told } = entry;
  const { clara } = told;
  if (clara.asked_back) {
    turn.answer.replaceChildren(el("p", { class: "said asks" }, told.text));
    return;
  }
  if (clara.made_from) turn.answer.before(el("p", { class: "understood" }, "Understood as ", el("q", {}, clara.question)));
  if (clara.answered === false) {
    const anyway = el("button", { class: "button", type: "button", onclick: () => again(turn, entry, { always_answer: true }) }, "Show the best guess");
    turn.answer.replaceChildren(notice({ sign: "none", kind: "none", title: told.text, text: "The passages found do not seem to hold an answer. Other words may find it.", actions: [anyway] }));
  } else {
    cite(turn, told);
  }
  turn.under.append(turn.looking);
  if (told.usage) turn.under.append(cost(told));
  if (!state.store.llm) turn.under.append(comparison({ store: state.store, messages: messagesTo(entry), fields: entry.options }));
}

/** The answer with numbers behind it, and the places they stand for below it. */
function cite(turn, told) {
  const line = el("p", { class: "said" }, told.text);
  turn.answer.replaceChildren(line);
  const sources = told.annotations.map((each) => each.url_citation).filter((each) => each?.url);
  if (!sources.length) return;
  const list = el("ol", { class: "sources", "aria-label": "Sources" });
  sources.forEach((source, place) => {
    const link = (attributes, ...children) =>
      el("a", { href: source.url, ...attributes, onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        reader.open(source.url, event.currentTarget);
      } }, ...children);
    line.append(link({ class: "cite", "aria-label": `Source ${place + 1}: ${source.title}` }, String(place + 1)));
    const place2 = el("span", { class: "place" });
    const quote = el("span", { class: "quote" });
    list.append(el("li", {}, link({ class: "source" }, el("span", { class: "number", "aria-hidden": "true" }, String(place + 1)), el("span", { class: "body" }, el("span", { class: "title" }, source.title, place2), quote))));
    preview(source, place2, quote);
  });
  turn.answer.append(list);
}

async function preview(source, place, quote) {
  const range = target(source.url);
  try {
    const told = await get(withQuery(`documents/${range.id}/passages`, { char: `${range.start},${range.end}`, limit: 1 }));
    const passage = told.passages[0];
    if (!passage) return;
    if (passage.heading) place.append(` · ${passage.heading}`);
    quote.replaceChildren(snippet(passage, range));
  } catch {
    // the link opens the document all the same, or says why not
  }
}

function cost(told) {
  const read = told.usage.prompt_tokens;
  const text = Math.max(told.clara.text_equivalent_tokens || 0, 0) || read;
  const memory = told.clara.memory_tokens;
  if (!memory) return el("p", { class: "cost meter-summary" }, `${several(read, "token")} read as text · answered in ${told.seconds.toFixed(1)} s`);
  const summary = [`${count(memory)} of them memory tokens`, fewer(text, read), `answered in ${told.seconds.toFixed(1)} s`].filter(Boolean).join(" · ");
  return el("div", { class: "cost meter" }, meter({ text, read, textLabel: "tokens as text", readLabel: "tokens read", summary }));
}

/** What the question's memory points at, which the answer does not wait for; a newer question ends it. */
async function looking(turn, entry) {
  lens.abort();
  lens = new AbortController();
  try {
    const told = await get(withQuery("lens", { store: state.store.name, query: entry.told.clara.question || entry.question }), { signal: lens.signal });
    entry.words = told.words;
    keep();
    showWords(turn, told.words);
  } catch (error) {
    showWords(turn, []); // an answer without its lens is whole
    if (!(error instanceof Refused) && !(error instanceof Unreachable) && error.name !== "AbortError") throw error;
  }
}

function showWords(turn, words) {
  if (!words.length) return turn.looking.remove();
  turn.looking.replaceChildren(el("span", { class: "label" }, LOOKING), el("ul", { class: "chips" }, words.map((word) => el("li", { title: `${several(word.slots, "memory token")} of the question ${word.slots === 1 ? "points" : "point"} here` }, word.word))));
}

/** The same question read in three ways, beside each other. */
function comparison(asked) {
  const box = el("div", { class: "comparison" });
  const button = el("button", { class: "button compare", type: "button" }, "Compare memories, full text, nothing");
  button.addEventListener("click", async () => {
    button.hidden = true;
    const cards = Object.fromEntries(Object.entries(COMPARED).map(([context, name]) => [context, el("section", { class: `card of-${context}`, "aria-busy": "true" }, el("h3", { tabindex: "-1" }, name), el("p", { class: "hint" }, EXPLAINED[context]), skeleton(2))]));
    box.replaceChildren(...Object.values(cards));
    box.querySelector("h3").focus({ preventScroll: true });
    try {
      const body = { model: asked.store.name, messages: asked.messages, clara: asked.fields };
      const told = [];
      for await (const each of stream(v1("compare"), { method: "POST", body })) {
        told.push(each);
        const most = Math.max(...told.map((one) => one.usage.prompt_tokens));
        for (const one of told) fill(cards[one.context], one, most);
        say(`${COMPARED[each.context]}: ${each.text}`);
      }
      if (told.length < Object.keys(COMPARED).length) throw new Unreachable("the comparison broke off");
    } catch (error) {
      button.hidden = false;
      box.replaceChildren(problem(error));
      button.focus();
    }
  });
  return el("div", {}, button, box);
}

function fill(card, told, most) {
  const bar = el("span", { class: "bar-in" });
  bar.style.inlineSize = `${(100 * told.usage.prompt_tokens) / most}%`;
  card.removeAttribute("aria-busy");
  const hint = card.querySelector(".hint");
  while (hint.nextSibling) hint.nextSibling.remove(); // the heading stays where it is, for it may have the focus
  hint.after(
    el("p", { class: told.clara.answered ? "said" : "said withheld" }, told.text || "No words."),
    el("div", { class: "facts" }, el("span", { class: "bar-out", "aria-hidden": "true" }, bar), el("dl", {}, el("div", {}, el("dt", {}, "tokens read"), el("dd", {}, count(told.usage.prompt_tokens))), el("div", {}, el("dt", {}, "seconds"), el("dd", {}, told.seconds.toFixed(2))))),
  );
}

function problem(error, retry) {
  const action = retry ? [el("button", { class: "button", type: "button", onclick: retry }, "Ask again")] : [];
  if (error instanceof Unreachable) return notice({ kind: "bad", title: "The server could not be reached.", text: "Your question is kept here. Ask again when the server is back.", actions: action });
  if (error instanceof Refused && error.code === "store_empty") return notice({ kind: "none", sign: "none", title: "There is nothing to search yet.", text: state.store.write ? "Add documents first." : "Ask whoever runs the server to add documents.", actions: state.store.write ? [el("a", { class: "button", href: "#documents" }, "Add documents")] : [] });
  if (error instanceof Refused && error.status === 401) return notice({ kind: "bad", title: "A key is needed.", text: "Enter the key of this server, then ask again.", actions: action });
  if (error instanceof Refused) return notice({ kind: "bad", title: "No answer came.", text: [error.message, error.requestId && `Request ${error.requestId}.`].filter(Boolean).join(" "), actions: action });
  throw error;
}

function failed(turn, error, entry) {
  const retry = () => again(turn, entry);
  if (error.name === "AbortError") {
    const text = turn.answer.querySelector(".said");
    const note = el("p", { class: "hint" }, "Stopped. ", el("button", { class: "link", type: "button", onclick: retry }, "Ask again"));
    if (text) turn.answer.append(note);
    else turn.answer.replaceChildren(note);
    say("Stopped");
    return;
  }
  const begun = turn.answer.querySelector(".said");
  if (!begun) return turn.answer.replaceChildren(problem(error, retry));
  turn.answer.append(notice({ kind: "bad", title: "The answer broke off.", text: error instanceof Unreachable ? "The server went away while it was written; what you see is not the whole answer." : error.message, actions: [el("button", { class: "button", type: "button", onclick: retry }, "Ask again")] }));
}
