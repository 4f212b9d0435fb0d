// Speaks with the server: the key, errors as one kind, streams of events. Knows no elements.

/** The server refused, or failed: its status, stable code and words. */
export class Refused extends Error {
  constructor(status, { message, code } = {}, { retryAfter = null, requestId = "" } = {}) {
    super(message || `the server answered ${status}`);
    Object.assign(this, { status, code: code || "", retryAfter, requestId });
  }
}

/** The server cannot be reached. */
export class Unreachable extends Error {}

export const events = new EventTarget();

/** A text that this tab keeps until it is closed. */
const kept = (name) => ({
  get: () => stored((store) => store.getItem(name)) || "",
  set: (value) => stored((store) => store.setItem(name, value)),
  forget: () => stored((store) => store.removeItem(name)),
});

export const key = kept("clara-key");
export const conversation = kept("clara-conversation");

function stored(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null; // a browser that keeps nothing, or has no room: the key is asked for again, the conversation is lost
  }
}

export const v1 = (path) => new URL(`v1/${path}`, document.baseURI);

export const withQuery = (path, fields) => {
  const url = v1(path);
  for (const [name, value] of Object.entries(fields)) if (value !== undefined && value !== null) url.searchParams.set(name, value);
  return url;
};

export function headers(more = {}) {
  const held = key.get();
  return held ? { ...more, Authorization: `Bearer ${held}` } : more;
}

/** A response that is no error. */
export async function send(url, { method = "GET", body, signal } = {}) {
  const more = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, { method, signal, headers: headers(more), body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    events.dispatchEvent(new Event("lost"));
    throw new Unreachable("the server cannot be reached");
  }
  events.dispatchEvent(new Event("reached"));
  if (!response.ok) throw await refused(response);
  return response;
}

export const get = async (url, options) => (await send(url, options)).json();

async function refused(response) {
  const body = await response.json().catch(() => ({}));
  return refusedBy(response.status, body, (name) => response.headers.get(name));
}

/** The error of a status, a body and headers; a key that is missing or wrong is asked for. */
export function refusedBy(status, body, header) {
  const retryAfter = Number.parseInt(header("retry-after") || "", 10);
  const error = new Refused(status, body.error, { retryAfter: Number.isNaN(retryAfter) ? null : retryAfter, requestId: header("x-request-id") || "" });
  if (status === 401) events.dispatchEvent(new CustomEvent("key-wanted", { detail: error }));
  return error;
}

/** The events of a stream, each parsed; an error within it is thrown. Ends at "[DONE]" or with the stream. */
export async function* stream(url, options) {
  const response = await send(url, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (!data) continue;
        if (data === "[DONE]") return;
        const told = JSON.parse(data);
        // A job's own error is a field of it; an error of the stream stands alone.
        if (told.error && !told.object) throw new Refused(response.status, told.error, { requestId: response.headers.get("x-request-id") || "" });
        yield told;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) {
      events.dispatchEvent(new Event("lost"));
      throw new Unreachable("the connection broke off");
    }
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Upload one file; `onProgress` gets shares from 0 to 1. Only XMLHttpRequest tells how much has been sent. */
export function upload(store, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", withQuery("documents", { store }));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    request.addEventListener("load", () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // told by its status
      }
      if (request.status === 202) resolve(body);
      else reject(refusedBy(request.status, body, (name) => request.getResponseHeader(name)));
    });
    request.addEventListener("error", () => {
      events.dispatchEvent(new Event("lost"));
      reject(new Unreachable("the connection broke off"));
    });
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    const form = new FormData();
    form.append("files", file, file.name);
    request.send(form);
  });
}

/** Waits; throws at once when it is stopped. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/** Where a citation's address leads: the document's id and the characters. */
export function target(address) {
  const url = new URL(address, document.baseURI);
  const id = /\/documents\/(doc-[0-9a-f]+)/.exec(url.pathname)?.[1] || "";
  const range = /char=(\d+),(\d+)/.exec(url.hash) || /^(\d+),(\d+)$/.exec(url.searchParams.get("char") || "");
  return { id, start: range ? Number(range[1]) : 0, end: range ? Number(range[2]) : 0 };
}
